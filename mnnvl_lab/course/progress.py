"""What was tried and solved: one small file beside the notebook, and the table that `lab.score()` shows of it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from mnnvl_lab.course.registry import exercises
from mnnvl_lab.errors import named_arguments, shown
from mnnvl_lab.notebook import html_block, text_block
from mnnvl_lab.records.files import replacing

FILE = "course-progress.json"
LOCK_LIMIT_S = 5.0
MOST_GUESS = 120  # letters of a guess that are kept, to know it when its cell runs again


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What was done about one exercise.

    Attributes:
        tries: different guesses in a row; a cell that runs again with the same guess is no further try.
        solved: whether a guess was right.
        hints: the highest hint that was read.
        revealed: whether the answer was asked for before it was found.
        last: the last guess, as it was written.
    """

    tries: int = 0
    solved: bool = False
    hints: int = 0
    revealed: bool = False
    last: str = ""

    def guessed(self, guess: object, *, right: bool) -> Attempt:
        """After one more guess."""
        written = shown(guess, MOST_GUESS)
        again = written == self.last
        return replace(self, tries=self.tries + (not again), solved=self.solved or right, last=written)


class Progress:
    """Attempts by number, kept in a file of a folder. Several notebooks may write it at the same time.

    Args:
        folder: of the file; the notebook's own, which is a kernel's current directory.
    """

    def __init__(self, folder: str | os.PathLike = "."):
        self.path = Path(folder) / FILE

    def read(self) -> dict[str, Attempt]:
        """All attempts; none if there is no file, or one that is not readable as such."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return {number: _attempt(fields) for number, fields in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError):
            return self._set_aside()

    def change(self, number: str, how) -> str:
        """Replace one attempt by `how(attempt)`; says why nothing was kept, or "".

        An answer counts also where it cannot be kept, as in a folder that is only readable.
        """
        try:
            with _locked(self.path.parent):
                attempts = self.read()
                changed = attempts | {number: how(attempts.get(number, Attempt()))}
                if changed != attempts:
                    with replacing(self.path, text=True) as file:
                        json.dump({n: asdict(changed[n]) for n in sorted(changed)}, file, indent=1)
            return ""
        except OSError as error:
            return f"not kept for lab.score(): {error}"

    def _set_aside(self) -> dict[str, Attempt]:
        """Nothing is lost of a file that cannot be read: it gets another name."""
        with suppress(OSError):
            os.replace(self.path, self.path.with_suffix(".unreadable.json"))
        return {}


def _attempt(fields: Mapping[str, object]) -> Attempt:
    """An attempt as it was written.

    Raises:
        TypeError: a field is unknown, or its value is of another type.
    """
    attempt = Attempt(**fields)
    wrong = [name for name, value in asdict(Attempt()).items() if type(getattr(attempt, name)) is not type(value)]
    if wrong:
        raise TypeError(f"{', '.join(wrong)}: of another type than an attempt has")
    return attempt


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder itself, so that no lock file is left in it.

    Raises:
        OSError: the folder cannot be opened, or another process holds the lock for too long.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        deadline_s = time.monotonic() + LOCK_LIMIT_S
        while not _taken(opened):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{folder} is locked by another notebook for {LOCK_LIMIT_S:.0f} s")
            time.sleep(0.01)
        yield
    finally:
        os.close(opened)


def _taken(opened: int) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True, kw_only=True, repr=False)
class Score:
    """Exercises tried and solved, per notebook.

    Attributes:
        table: a row per notebook: exercises, tried, solved, without_hint (solved before any hint), revealed.
    """

    table: pd.DataFrame

    @property
    def title(self) -> str:
        return f"{self.table['solved'].sum()} of {self.table['exercises'].sum()} exercises solved"

    def __repr__(self) -> str:
        return text_block(self.title, self.table)

    def _repr_html_(self) -> str:
        return html_block(self.title, self.table)


@named_arguments
def score(folder: str | os.PathLike = ".") -> Score:
    """What was tried and solved so far, from the file beside the notebook; nothing leaves the machine.

    Args:
        folder: where the notebooks are, if this is called from elsewhere.
    """
    attempts = Progress(folder).read()
    rows: dict[str, dict[str, int]] = {}
    for number, each in exercises().items():
        row = rows.setdefault(each.notebook, dict.fromkeys(COLUMNS, 0))
        for column, count in _counted(attempts.get(number, Attempt())).items():
            row[column] += count
    return Score(table=pd.DataFrame([{"notebook": notebook} | row for notebook, row in rows.items()]))


COLUMNS = ("exercises", "tried", "solved", "without_hint", "revealed")


def _counted(attempt: Attempt) -> Mapping[str, int]:
    solved = attempt.solved and not attempt.revealed
    alone = solved and not attempt.hints
    return dict(zip(COLUMNS, (1, attempt.tries > 0, solved, alone, attempt.revealed), strict=True))
