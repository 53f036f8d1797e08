"""The machine, the method and the commands: what a reader needs to believe a number and to get it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from mnnvl_lab.records import protection_of
from mnnvl_lab.records.schema import POINT_COLUMNS
from mnnvl_lab.reports.blocks import Block, bullets, commands, facts, joined, paragraph
from mnnvl_lab.reports.inputs import SAMPLES, Source

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "device": "device",
        "topology": "links",
        "ranks_per_gpu": "ranks per GPU",
        "driver": "driver",
        "flashinfer": "FlashInfer",
        "nccl": "NCCL",
        "torch": "torch",
        "python": "Python",
        "package": "mnnvl_lab",
        "commit": "commit",
        "cpu": "processor",
        "cores": "cores",
        "memory_copy_gigabytes_per_s": "memory copy, GB/s",
        "created_at": "measured",
        "command": "command",
    }
)
CLOCK_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "eager": "eager: one operation after a barrier; launches, and the moments by which ranks leave the barrier "
        "apart, are inside",
        "graph": "graph: rounds back to back, replayed from a CUDA graph; launches are hidden",
        "kernel": "kernel: from the first kernel of a phase to the end of its last, by the profiler; launches are "
        "outside, waiting for peers is inside",
    }
)


def machine(source: Source) -> Block:
    """Device, links, versions, commit and command of one file."""
    found: dict[str, object] = {"file": f"{source.letter}: {source.name}", "sha256": source.sha256}
    for field, name in FIELDS.items():
        values = dict.fromkeys(str(part[field]) for part in source.parts if part.get(field) not in (None, ""))
        if values:
            found[name] = ", ".join(values)
    if any(part.get("dirty") for part in source.parts):
        found["commit"] = f"{found.get('commit', 'unknown')} with local changes"
    found["protection"] = protection_of(source.table)
    return facts(found)


def method(sources: Sequence[Source]) -> Block:
    """Clock, warm-up, samples and checks, read from the records."""
    return joined(_method(source) for source in sources if source.kind == SAMPLES)


def _method(source: Source) -> Block:
    table = source.table
    counts = table.groupby(["clock", "phase"])["iteration"].nunique()
    warmups = dict.fromkeys(str(part.get("warmup")) for part in source.parts if part.get("warmup") is not None)
    ends = ", ".join(f"{name} {count}" for name, count in _points(table)["stopped"].value_counts().items())
    items = [
        *(CLOCK_WORDS[clock] for clock in table["clock"].unique() if clock in CLOCK_WORDS),
        f"warm-up rounds before the first sample: {', '.join(warmups) or 'not recorded'}",
        f"iterations of a point: {int(_iterations(table).min())} to {int(_iterations(table).max())}, on every rank; "
        f"at most {counts.max()} in a phase",
        f"what ended sampling, by points and phases: {ends}",
        f"results held against the oracle before and after timing: {_checked(table)}",
        f"routing {', '.join(table['routing'].unique())}; seeds {', '.join(map(str, table['seed'].unique()))}; "
        f"format {', '.join(table['format'].unique())}; L2 cache {', '.join(table['l2'].unique())}",
        "of each iteration the slowest rank counts; medians are over iterations; intervals enclose the median with "
        "95 % confidence, from order statistics, so no distribution is assumed",
    ]
    return paragraph(f"File {source.letter}, {source.name}:") + bullets(items)


def _points(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop_duplicates(list(POINT_COLUMNS))


def _iterations(table: pd.DataFrame) -> pd.Series:
    return table.groupby(list(POINT_COLUMNS), dropna=False)["iteration"].nunique()


def _checked(table: pd.DataFrame) -> str:
    counts = table["checked"].value_counts(normalize=True)
    return ", ".join(f"{name} for {100 * share:.0f} % of the samples" for name, share in counts.items())


def repeat(sources: Sequence[Source], asked: str) -> Block:
    """Commands that measured the files, and the one that made this page."""
    lines = []
    for source in sources:
        for part in {str(sorted(part.items(), key=str)): part for part in source.parts}.values():
            lines += _measured(source, part)
    return commands([*dict.fromkeys(lines), "", "# this page", asked])


def _measured(source: Source, part: Mapping[str, object]) -> list[str]:
    commit = str(part.get("commit") or "")
    where = [f"git checkout {commit}"] if commit else []
    typed = str(part.get("command") or "")
    said = typed if typed and typed != "notebook" else "# measured from a notebook: its cells are the command"
    return [f"# {source.letter}, {source.name}", *where, said]


def page_command(files: Sequence[str], out: str, *, question: str = "", template: str = "") -> str:
    """The command line that makes this page again."""
    options = {"--question": question, "--template": template}
    given = [word for name, value in options.items() if value for word in (name, value)]
    return shlex.join(["python", "-m", "mnnvl_lab", "report", *files, "--out", out, *given])
