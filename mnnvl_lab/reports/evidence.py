"""What a write-up is made of: the files, and a method per section that the template calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mnnvl_lab.reports import caveats, comparison, extras, machine, results
from mnnvl_lab.reports.blocks import Block, bullets, joined, paragraph
from mnnvl_lab.reports.inputs import SAMPLES, Source, read_sources


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The files of a write-up. Each method gives one section.

    Attributes:
        sources: the files, in their order.
        folder: into which the figures go as files too; None for none.
    """

    sources: tuple[Source, ...]
    folder: str | None = None

    @classmethod
    def read(cls, files: Sequence[str], *, folder: str | None = None) -> Evidence:
        """Read files with `inputs.read_sources`.

        Raises:
            RecordError, Refused: see there.
        """
        return cls(sources=read_sources(files), folder=folder)

    @property
    def samples(self) -> list[Source]:
        return [source for source in self.sources if source.kind == SAMPLES]

    def has(self, section: str) -> bool:
        """Whether a section of that name has data; a template drops cells tagged `needs-SECTION` without."""
        return NEEDS[section](self)

    def answer(self) -> Block:
        """The result in a sentence or two."""
        found = []
        for source in self.samples:
            _, ahead = results.ahead_of(source.table)
            words = results.sentences(ahead) if ahead is not None else ["holds one mode alone: nothing to compare."]
            found += [f"{source.letter} ({source.device}): {sentence}" for sentence in words]
        for a, b in comparison.pairs(self.sources):
            found.append(self._pair(a, b))
        return bullets(found)

    @staticmethod
    def _pair(a: Source, b: Source) -> str:
        try:
            return comparison.verdict_words(f"{a.letter} and {b.letter}", a, b, comparison.compared(a, b))
        except comparison.RecordError as reason:
            return f"{a.letter} and {b.letter} cannot be compared: {reason}"

    def machine(self) -> Block:
        return joined(machine.machine(source) for source in self.sources)

    def method(self) -> Block:
        return machine.method(self.sources)

    def latency(self) -> Block:
        blocks = (results.latency(s, links=self._links(s), folder=self.folder) for s in self.samples)
        return joined([extras.bounds_words(next(iter(self._of("links")), None)), *blocks])

    def fastest(self) -> Block:
        return joined(results.fastest(source, folder=self.folder) for source in self.samples)

    def phases(self) -> Block:
        return joined(results.phases(source, folder=self.folder) for source in self._with_phases())

    def bandwidth(self) -> Block:
        timed = [source for source in self.samples if len(extras.timed_phases(source.table))]
        return joined([extras.conventions(), *(extras.bandwidth_block(source) for source in timed)])

    def memory(self) -> Block:
        return joined(extras.memory_block(source, folder=self.folder) for source in self._of("memory"))

    def workspaces(self) -> Block:
        return joined(extras.workspace_block(s) for s in self.samples if len(extras.workspaces(s.table)))

    def skew(self) -> Block:
        delayed = [source for source in self.samples if len(extras.stragglers(source.table))]
        return joined(extras.skew_block(source, folder=self.folder) for source in delayed)

    def links(self) -> Block:
        return joined(extras.links_block(source) for source in self._of("links"))

    def comparison(self) -> Block:
        return comparison.comparison(self.sources, folder=self.folder)

    def caveats(self) -> Block:
        return bullets(caveats.caveats(self.sources))

    def repeat(self, asked: str) -> Block:
        return machine.repeat(self.sources, asked)

    def files(self) -> Block:
        names = ", ".join(f"{source.letter}: {source.name}" for source in self.sources)
        return paragraph(f"Files: {names}.")

    def _of(self, kind: str) -> list[Source]:
        return [source for source in self.sources if source.kind == kind]

    def _with_phases(self) -> list[Source]:
        return [source for source in self.samples if any(True for _ in results.phase_parts(source.table))]

    def _links(self, source: Source):
        """Rates of the very machine of a file, where they were given along."""
        places = [(part.get("device"), part.get("topology")) for part in source.parts]
        for links in self._of("links"):
            if all((part.get("device"), part.get("topology")) in places for part in links.parts):
                return links.table
        return None


NEEDS: Mapping[str, Callable[[Evidence], bool]] = MappingProxyType(
    {
        "fastest": lambda e: any(results.ahead_of(s.table)[1] is not None for s in e.samples),
        "phases": lambda e: bool(e._with_phases()),
        "bandwidth": lambda e: any(len(extras.timed_phases(s.table)) for s in e.samples),
        "memory": lambda e: bool(e._of("memory")),
        "workspaces": lambda e: any(len(extras.workspaces(s.table)) for s in e.samples),
        "skew": lambda e: any(len(extras.stragglers(s.table)) for s in e.samples),
        "links": lambda e: bool(e._of("links")),
        "comparison": lambda e: len(e.samples) > 1,
    }
)
"""Sections that not every set of files has."""
