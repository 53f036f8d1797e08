"""A workspace over the wrong group, beside the same over the EP group: who notices, in which phase, in which words.

vLLM handed FlashInfer the communicator of the data-parallel group until its pull request 40893. `affected` says which
layouts that hits, by arithmetic alone; `side_by_side` runs one and shows what the kernels say, and that the EP group's
workspace then carries a checked round.
"""

from mnnvl_lab.wrong_group.attempts import Attempt, join, load, recorded, save
from mnnvl_lab.wrong_group.hits import affected
from mnnvl_lab.wrong_group.trial import side_by_side

__all__ = ["Attempt", "affected", "join", "load", "recorded", "save", "side_by_side"]
