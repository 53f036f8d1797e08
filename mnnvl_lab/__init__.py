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

_HOMES = {
    "Exchange": "mnnvl_lab.transport.exchange",
    "Layout": "mnnvl_lab.layout",
    "Load": "mnnvl_lab.routing",
    "MODELS": "mnnvl_lab.model",
    "Need": "mnnvl_lab.need",
    "Oracle": "mnnvl_lab.oracle",
    "Ranks": "mnnvl_lab.ranks",
    "Sampling": "mnnvl_lab.measure",
    "Sweep": "mnnvl_lab.measure",
    "plan": "mnnvl_lab.planner",
    "predict": "mnnvl_lab.prediction",
    "require_gpu": "mnnvl_lab.hardware",
    "require_model": "mnnvl_lab.model",
    "read_engine": "mnnvl_lab.engines",
    "run": "mnnvl_lab.sweep",
    "simulate_round": "mnnvl_lab.simulate",
    "who_serves": "mnnvl_lab.serving",
    "table": "mnnvl_lab.records.styled",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Load a public name when it is first asked for, so that the pure half stays light."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
