"""Progress of slow steps: one line that is replaced in place, in notebooks and terminals; now and then a line in a log.

In a notebook the line is an output of the cell (never stderr, which is shown in red) and needs no widgets. Its
metadata is `METADATA`, so that tools can leave it out of outputs that are kept.
"""

from __future__ import annotations

import contextvars
import shutil
import sys
import threading
import time
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Screen(Protocol):
        def show(self, text: str) -> None: ...

        def end(self, text: str) -> None: ...


METADATA = MappingProxyType({"mnnvl_lab": "progress"})
TICK_S = 1.0
LOG_S = 10.0  # between two lines where lines cannot be replaced


class Progress:
    """A line that says what is being done and for how long; a context manager.

    Args:
        text: what is being done, such as `starting 4 ranks`; or a function that says it at any time.
        done: what remains when it succeeded; nothing does by default, nor after an error.
        enabled: False for no output at all.
        delay_s: a step that ends within so many seconds shows nothing.
    """

    def __init__(self, text: str | Callable[[], str], *, done: str = "", enabled: bool = True, delay_s: float = 0.0):
        self._text, self._done, self._enabled, self._delay_s = text, done, enabled, delay_s
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._screen: Screen | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self):
        self._began_s = time.monotonic()
        if self._enabled:
            if not self._delay_s:
                self._show()
            # In a copy of the context, which tells the kernel to which cell the output belongs.
            context = contextvars.copy_context()
            self._thread = threading.Thread(
                target=context.run, args=(self._tick,), name="mnnvl_lab-progress", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, error_type, *rest):
        self._ended.set()
        if self._thread:
            self._thread.join()
        if self._screen:
            self._screen.end("" if error_type else self._done)

    def update(self, text: str) -> None:
        """Say from now on that something else is being done."""
        self._text = text
        if self._screen:
            self._show()

    def _tick(self) -> None:
        wait_s = self._delay_s or TICK_S
        while not self._ended.wait(wait_s):
            self._show()
            wait_s = TICK_S

    def _show(self) -> None:
        elapsed_s = time.monotonic() - self._began_s
        with self._lock:
            self._screen = self._screen or _screen()
            text = self._text() if callable(self._text) else self._text
            self._screen.show(text if elapsed_s < TICK_S else f"{text}, {elapsed_s:.0f} s")


class _Notebook:
    """An output of the running cell."""

    def __init__(self):
        self._handle = None

    def show(self, text: str) -> None:
        from IPython.display import display

        bundle = {"text/plain": text}
        if self._handle is None:
            self._handle = display(bundle, raw=True, metadata=dict(METADATA), display_id=True)
        else:
            self._handle.update(bundle, raw=True, metadata=dict(METADATA))

    end = show


class _Terminal:
    """The last line of a terminal: stderr, so that what a command prints can still go to a file."""

    def show(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r{text[:width]}\x1b[K")
        sys.stderr.flush()

    def end(self, text: str) -> None:
        self.show(text)
        if text:
            sys.stderr.write("\n")


class _Log:
    """Lines of a file or pipe, few of them: none for what takes seconds."""

    def __init__(self):
        self._next_s = time.monotonic() + LOG_S

    def show(self, text: str) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LOG_S
            print(text, file=sys.stderr, flush=True)

    def end(self, text: str) -> None:
        pass


def _screen() -> Screen:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        return _Notebook()
    return _Terminal() if sys.stderr is not None and sys.stderr.isatty() else _Log()
