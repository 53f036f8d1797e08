"""A few words that a process leaves where others can read them, also after it hangs or dies."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

SIZE_BYTES = 64


class Mark:
    """The words of this process, in a file that it maps: writing is a store to memory."""

    def __init__(self, run_dir: Path):
        path = Path(run_dir) / f"phase-{os.getpid()}"
        path.write_bytes(bytes(SIZE_BYTES))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE_BYTES)

    def write(self, words: str) -> None:
        self._memory[:] = words.encode()[:SIZE_BYTES].ljust(SIZE_BYTES, b"\0")

    def read(self) -> str:
        return _decode(self._memory[:])


def read_mark(run_dir: Path, pid: int) -> str:
    """What process `pid` last wrote, or nothing if it never did."""
    try:
        return _decode((Path(run_dir) / f"phase-{pid}").read_bytes())
    except FileNotFoundError:
        return ""


def _decode(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="ignore")
