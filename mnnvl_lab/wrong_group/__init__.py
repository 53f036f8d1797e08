"""A workspace over the wrong group, beside the same over the EP group: who notices, in which phase, in which words.

vLLM handed FlashInfer the communicator of the data-parallel group until its pull request 40893. `affected_layouts` says
which layouts that hits and `workspace_over` what such a workspace would be, by arithmetic alone; `side_by_side` runs
one layout and shows what the kernels say, and that the EP group's workspace then carries a checked round.
"""

_MODULES = {
    "memory": ("WrongGroup", "affected_layouts", "axes_of", "workspace_over"),
    "trial": ("Attempt", "join", "load", "recorded", "save", "side_by_side"),
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Load on first use: arithmetic alone needs neither ranks nor torch."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
