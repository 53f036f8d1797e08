"""Interrupts (Ctrl-C, a notebook's stop button): the short message, and sections that an interrupt must not split."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from mnnvl_lab.errors import Interrupted
from mnnvl_lab.progress import Progress

DELAY_S = 1.0  # what takes less shows no progress
GO_ON = "The next call on the ranks starts what is missing."


@contextmanager
def shown_step(
    dead: Callable[[], Collection[int]],
    text: str,
    *,
    progress: bool,
    done: str = "",
    delay_s: float = DELAY_S,
    then: str = GO_ON,
    status: Callable[[], str] = str,
) -> Iterator[None]:
    """A step of the ranks that may take long: shown meanwhile, and named if it is interrupted.

    Args:
        dead: gives the ranks that are known to be dead.
        text, done, delay_s: as in `Progress`.
        progress: whether anything is shown.
        status: gives what is waited for at the moment, if that is known.
        then: how to go on after an interrupt.

    Raises:
        Interrupted: on KeyboardInterrupt; says what was stopped, which ranks were ended, and how to go on.
    """
    before = set(dead())
    try:
        with Progress(
            lambda: f"{text}: {waits}" if (waits := status()) else text, done=done, enabled=progress, delay_s=delay_s
        ):
            yield
    except KeyboardInterrupt:
        ended = ", ".join(map(str, sorted(set(dead()) - before)))
        what = f"; ranks that were at work were ended: {ended}" if ended else ""
        raise Interrupted(f"{text}: stopped{what}. {then}") from None


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Delay SIGINT until the block has ended; other threads than the main one never receive it.

    Raises:
        KeyboardInterrupt: at the end of the block, if SIGINT came meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if came:
        raise KeyboardInterrupt
