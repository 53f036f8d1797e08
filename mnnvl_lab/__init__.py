"""A laboratory for expert parallelism over NVLink.

Importing this package starts nothing and loads neither torch nor FlashInfer.

Shape letters, the one legend of the package:

====== ==============================================================================
letter meaning
====== ==============================================================================
R      ranks of the expert-parallel (EP) group, `ep_size` = DP x PCP x TP
T      tokens of one rank in one round
M      tokens of the fullest rank in one round, `runtime_max_tokens`
K      experts that a token chooses, `top_k`
E      experts
H      hidden size
====== ==============================================================================

Numbers carry their unit in their name. Memory is in bytes or GiB (2^30), links are in GB/s (10^9 bytes a second).
"""

__version__ = "0.1.0"
