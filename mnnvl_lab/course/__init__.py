"""The exercises of the notebooks: `lab.check`, `lab.hint`, `lab.reveal`, `lab.score`, as data per notebook."""

from mnnvl_lab.course.ask import answer, check, hint, reveal
from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.course.progress import score
from mnnvl_lab.course.registry import exercises, require_exercise

__all__ = ["Exercise", "Mistake", "answer", "check", "exercises", "hint", "require_exercise", "reveal", "score"]
