"""State of a one-sided workspace at one moment: which rows hold what, counters and flags."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

UNTOUCHED, VALID, STALE = 0, 1, 2
NAMELESS = -1
STATES = MappingProxyType({UNTOUCHED: "never written", VALID: "of this round", STALE: "stale"})


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One rank's row of the workspace at one moment.

    Attributes:
        moment: after which phase of which round.
        ep_rank: whose row.
        epoch: `flag_val`; dispatch and combine each move it on by one.
        sent_R: rows sent to each target (`send_counters`).
        received_R: rows that came from each source (`recv_counters`).
        dispatch_flags_R, combine_flags_R: epoch that each rank last signalled.
        dispatch_RM, combine_RM: a state of `STATES` for each slot of each source, of the rows that dispatch brought and
            of those that combine pulls. Rows beyond the counter are stale: the kernels never clear them.
        tokens_RM: the source's token whose row lies in each slot of dispatch, by the row's own header; `NAMELESS` in a
            slot that was never written.
        targets_TK, slots_TK: for each of this rank's own tokens, to which rank it went and into which slot there
            (`topk_target_ranks`, `topk_send_indices`); -1 at a choice whose rank an earlier choice has named.
    """

    moment: str
    ep_rank: int
    epoch: int
    sent_R: np.ndarray
    received_R: np.ndarray
    dispatch_flags_R: np.ndarray
    combine_flags_R: np.ndarray
    dispatch_RM: np.ndarray
    combine_RM: np.ndarray
    tokens_RM: np.ndarray
    targets_TK: np.ndarray
    slots_TK: np.ndarray
