"""What a process leaves where others can read it, also after it hangs or dies: its phase, and the error it met."""

from __future__ import annotations

import mmap
import os
import traceback
from contextlib import suppress
from pathlib import Path

SIZE_BYTES = 64
REPORT_BYTES = 1 << 16


class Mark:
    """The phase of this process, in a file that it maps (writing is a store to memory), and its last error, in another.

    An error is left before anything is cleaned up: cleaning up after a CUDA error may abort the process, and then
    nothing but these files says why.
    """

    def __init__(self, run_dir: Path):
        self._run_dir, self._reported = Path(run_dir), False
        path = self._run_dir / f"phase-{os.getpid()}"
        path.write_bytes(bytes(SIZE_BYTES))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE_BYTES)

    def write(self, words: str) -> None:
        self._memory[:] = words.encode()[:SIZE_BYTES].ljust(SIZE_BYTES, b"\0")

    def read(self) -> str:
        return _decode(self._memory[:])

    def report(self, error: BaseException) -> None:
        """Leave an exception's text; of several in one call the first, from which the others follow."""
        if not self._reported:
            with suppress(Exception):  # what is written here helps only if all else fails
                words = "".join(traceback.format_exception_only(error)).strip()
                frames = "".join(traceback.format_exception(error))
                text = f"{words}\0{frames}".encode(errors="replace")[:REPORT_BYTES]
                report_path(self._run_dir, os.getpid()).write_bytes(text)
                self._reported = True

    def forget_report(self) -> None:
        """What happened in an earlier call is no cause for what happens from now on."""
        if self._reported:
            report_path(self._run_dir, os.getpid()).unlink(missing_ok=True)
            self._reported = False


def read_mark(run_dir: Path, pid: int) -> str:
    """What process `pid` last wrote, or nothing if it never did."""
    try:
        return _decode((Path(run_dir) / f"phase-{pid}").read_bytes())
    except FileNotFoundError:
        return ""


def report_path(run_dir: Path, pid: int) -> Path:
    return Path(run_dir) / f"error-{pid}"


def read_report(run_dir: Path, pid: int) -> tuple[str, str]:
    """The error that process `pid` met in its last call, in a line or two, and its traceback; empty if it met none."""
    with suppress(OSError):
        words, _, frames = report_path(run_dir, pid).read_bytes().decode(errors="replace").partition("\0")
        return words, frames
    return "", ""


def _decode(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="ignore")
