"""Expected results of dispatch and combine, computed from all ranks' inputs; independent of the transports."""

from mnnvl_lab.oracle import kernel_rules, payload
from mnnvl_lab.oracle.kernel_rules import partial_factor, reduce_slots, sent_tokens, target_ranks
from mnnvl_lab.oracle.oracle import Oracle
from mnnvl_lab.oracle.payload import expert_factor

__all__ = [
    "Oracle",
    "expert_factor",
    "kernel_rules",
    "partial_factor",
    "payload",
    "reduce_slots",
    "sent_tokens",
    "target_ranks",
]
