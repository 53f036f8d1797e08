"""How a process ended, in words."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

REPORT_LINES = 40


@dataclass(frozen=True, kw_only=True)
class End:
    """Why a process is gone, and the last lines that it wrote."""

    cause: str
    report: str = ""


def exit_words(exit_code: int | None) -> str:
    """An exit code as Python gives it: negative for a signal."""
    if exit_code is not None and exit_code < 0:
        return f"killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    return f"exit code {exit_code}"


def after_error(end: End, met: tuple[str, str]) -> End:
    """The end of a process that had met an error, which is the cause then.

    Args:
        met: the error in a line or two, and its traceback (`mark.read_report`).
    """
    words, frames = met
    if not words:
        return end
    return End(cause=f"{words}\n  while cleaning up after this error: {end.cause}", report=f"{frames}\n{end.report}")


def tail(log: str | Path) -> str:
    """The end of a log, without the engine's own chatter."""
    if isinstance(log, Path):
        log = log.read_text(errors="replace") if log.exists() else ""
    lines = [line for line in log.splitlines() if "[IPEngine" not in line and "[KernelNanny" not in line]
    return "\n".join(lines[-REPORT_LINES:])
