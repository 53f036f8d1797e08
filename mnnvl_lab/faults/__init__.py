"""Fault injection: ranks that hang, crash or send invalid input, and protocols with a mistake."""

_MODULES = {
    "broken_protocols": ("VARIANTS", "Variant", "require_variant"),
    "crashes": ("Crash", "crash_some_time", "crash_while_measuring"),
    "fuzz": ("FuzzCase", "run_fuzz_cases"),
    "hangs": ("fail_beside_kernel", "idle", "live_on", "open_and_keep", "return_early", "small_point", "stay_away"),
    "invalid_inputs": ("INVALID_INPUTS", "InvalidInput", "require_invalid_input"),
    "prepare_blocks": ("first_weights", "prepare_rounds", "prepare_table"),
    "races": ("challenge", "stress"),
    "replay": ("replay_one_sided", "replay_prepare", "steps_of"),
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    """Load on first use: torch and ranks are needed only where a fault is run."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
