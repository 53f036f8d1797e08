"""The rank processes: start them, keep them warm, run a package function on each, stop and kill them.

`Ranks` lives in the notebook's process and `Rank`, one a process, in the engines of ipyparallel that it starts.
"""

from mnnvl_lab.ranks.ranks import Ranks

__all__ = ["Ranks"]
