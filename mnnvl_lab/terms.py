"""Glossary: terms and abbreviations of the notebooks, figures and commands, read from `docs/glossary.md`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

from mnnvl_lab.datasets import DATA, require_data
from mnnvl_lab.errors import choose, named_arguments

PAGE = DATA.parent / "docs" / "glossary.md"
ENTRY = re.compile(
    r"^\*\*(?P<name>[^*(]+?)(?: \((?P<full>[^)]+)\))?\*\*\s*\n(?P<meaning>.+?) \*Source: (?P<source>.+?)\.\*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Term:
    """A word and its meaning.

    Attributes:
        name: the word or abbreviation, as the pages write it.
        full: what an abbreviation stands for, or "".
        meaning: one or two sentences.
        source: where the word comes from.
    """

    name: str
    full: str
    meaning: str
    source: str

    @property
    def title(self) -> str:
        return f"{self.name} ({self.full})" if self.full else self.name

    def __str__(self) -> str:
        return f"{self.title}: {self.meaning} [{self.source}]"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<p><b>{escape(self.title)}</b>: {escape(self.meaning)} <small>[{escape(self.source)}]</small></p>"


@dataclass(frozen=True, kw_only=True)
class Glossary:
    """All terms, in alphabetical order; shown as a list in a notebook."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.terms))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(term._repr_html_() for term in self.terms)


@named_arguments
def glossary(name: str | None = None) -> Term | Glossary:
    """The meaning of a term, in any case; without a name, all terms.

    Raises:
        Refused: the term is not in the glossary; names the nearest ones.
        RecordError: the package is installed without its source checkout.
    """
    terms = _terms()
    if name is None:
        return Glossary(terms=tuple(terms.values()))
    return terms[choose(name, terms, "term")]


def _terms() -> dict[str, Term]:
    require_data(PAGE.exists(), PAGE, "the pages")
    matches = (match.groupdict(default="") for match in ENTRY.finditer(PAGE.read_text(encoding="utf-8")))
    return {fields["name"]: Term(**fields | {"meaning": " ".join(fields["meaning"].split())}) for fields in matches}
