"""What comes with the source checkout and not with an installed package: recorded and published data."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from mnnvl_lab.errors import RecordError, Refused

DATA = Path(__file__).resolve().parents[1] / "data"


def require_data(found: bool, place: Path, what: str) -> None:
    """Refuse where the data are not beside the package.

    Args:
        found: whether they are.
        place: where they were looked for.
        what: such as "the published tables".

    Raises:
        RecordError: with the remedy.
    """
    if not found:
        raise RecordError(
            f"{place}: no such file; {what} come with the source checkout, not with an installed package: "
            "clone the repository and install it with `pip install --editable .`"
        )


def require_known(name: str, known: Iterable[str], what: str) -> None:
    """Refuse a name that is not among those known, with near ones.

    Raises:
        Refused: names the near ones, else all.
    """
    known = list(known)
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise Refused(f"{what} {name!r} is not known: {hint}choose one of {', '.join(known)}")
