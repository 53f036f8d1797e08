"""What dispatch and combine must return, from the global view; knows no transport."""

from mnnvl_lab.oracle import combine, dispatch, payload, rounding
from mnnvl_lab.oracle.combine import partial_gain, reduce_slots
from mnnvl_lab.oracle.oracle import Oracle
from mnnvl_lab.oracle.payload import expert_gain

__all__ = [
    "Oracle",
    "combine",
    "dispatch",
    "expert_gain",
    "partial_gain",
    "payload",
    "reduce_slots",
    "rounding",
]
