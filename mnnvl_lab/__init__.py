"""A laboratory for expert parallelism over NVLink: `import mnnvl_lab as lab`.

Importing this package starts nothing and loads neither torch nor FlashInfer.

Shape letters, the one legend of the package:

====== ==============================================================================
letter meaning
====== ==============================================================================
R      ranks of the expert-parallel (EP) group, `ep_size` = DP x PCP x TP
T      tokens of one rank in one round
M      tokens per rank that all ranks agree on for one round, `runtime_max_tokens`
K      experts that a token chooses, `top_k`
E      experts
H      hidden size
====== ==============================================================================

Numbers carry their unit in their name. Memory is in bytes or GiB (2^30), links are in GB/s (10^9 bytes per second).
"""

__version__ = "0.1.0"

_MODULES = {
    "bandwidth": "mnnvl_lab.analysis.bandwidth",
    "bounds": "mnnvl_lab.bounds",
    "capture": "mnnvl_lab.measure.capture",
    "course": "mnnvl_lab.course",
    "crossover": "mnnvl_lab.analysis.crossover",
    "datasets": "mnnvl_lab.datasets",
    "doctor": "mnnvl_lab.doctor",
    "errors": "mnnvl_lab.errors",
    "faults": "mnnvl_lab.faults",
    "findings": "mnnvl_lab.analysis.findings",
    "layout": "mnnvl_lab.layout",
    "links": "mnnvl_lab.measure.links",
    "memory": "mnnvl_lab.measure.memory",
    "memory_overhead": "mnnvl_lab.measure.memory_overhead",
    "model_check": "mnnvl_lab.model_check",
    "oracle": "mnnvl_lab.oracle",
    "pico": "mnnvl_lab.transport.pico.steps",
    "placement": "mnnvl_lab.placement",
    "planner": "mnnvl_lab.planner",
    "plots": "mnnvl_lab.plots",
    "prediction": "mnnvl_lab.prediction",
    "published": "mnnvl_lab.published",
    "records": "mnnvl_lab.records",
    "routing": "mnnvl_lab.routing",
    "skew": "mnnvl_lab.analysis.skew",
    "trace": "mnnvl_lab.analysis.trace",
    "traffic": "mnnvl_lab.routing.traffic",
    "workspace": "mnnvl_lab.workspace",
    "wrong_group": "mnnvl_lab.wrong_group",
}
_NAMES = {
    "Delay": "mnnvl_lab.measure",
    "Exchange": "mnnvl_lab.exchange",
    "ExchangeShape": "mnnvl_lab.exchange",
    "Hang": "mnnvl_lab.errors",
    "Interrupted": "mnnvl_lab.errors",
    "Layout": "mnnvl_lab.layout",
    "Load": "mnnvl_lab.routing",
    "MODELS": "mnnvl_lab.model",
    "Oracle": "mnnvl_lab.oracle",
    "Padding": "mnnvl_lab.routing",
    "Point": "mnnvl_lab.measure",
    "RankDied": "mnnvl_lab.errors",
    "RankError": "mnnvl_lab.errors",
    "Ranks": "mnnvl_lab.ranks",
    "RecordError": "mnnvl_lab.errors",
    "Refused": "mnnvl_lab.errors",
    "Sampling": "mnnvl_lab.measure",
    "Server": "mnnvl_lab.routing",
    "Sweep": "mnnvl_lab.measure",
    "WorkspaceMismatch": "mnnvl_lab.errors",
    "WrongResult": "mnnvl_lab.errors",
    "check": "mnnvl_lab.course",
    "export": "mnnvl_lab.records.export",
    "glossary": "mnnvl_lab.terms",
    "hint": "mnnvl_lab.course",
    "host_only": "mnnvl_lab.notebook",
    "count_loads": "mnnvl_lab.measure.expert_loads",
    "explore": "mnnvl_lab.explorer.explore",
    "plan": "mnnvl_lab.planner",
    "predict": "mnnvl_lab.prediction",
    "read_engine": "mnnvl_lab.engines",
    "require_gpu": "mnnvl_lab.hardware",
    "require_model": "mnnvl_lab.model",
    "report": "mnnvl_lab.reports",
    "reveal": "mnnvl_lab.course",
    "run": "mnnvl_lab.measure.run",
    "score": "mnnvl_lab.course",
    "simulate_round": "mnnvl_lab.simulate",
    "summary": "mnnvl_lab.records",
    "table": "mnnvl_lab.records.styled",
    "who_serves": "mnnvl_lab.serving",
}
__all__ = sorted({*_MODULES, *_NAMES})


def __getattr__(name: str):
    """Load a public name when it is first asked for, so that the pure half stays light."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
