"""How many GPUs this process sees, without starting CUDA in it; and whether the one in use has come to rest."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

REST_LIMIT_S = 0.5  # what is enqueued takes milliseconds, unless it waits for a peer


def count_visible_gpus() -> int:
    """GPUs of this machine that `CUDA_VISIBLE_DEVICES` leaves visible; 0 without a driver."""
    return len(visible(_uuids(), os.environ.get("CUDA_VISIBLE_DEVICES")))


def visible(uuids: list[str], listed: str | None) -> list[str]:
    """Those of the machine's GPUs that CUDA would show, in its order.

    Args:
        uuids: of all GPUs, in the driver's order.
        listed: value of `CUDA_VISIBLE_DEVICES`: indices or beginnings of UUIDs. As CUDA does, what follows the first
            entry that names no GPU is ignored.
    """
    if listed is None:
        return list(uuids)
    chosen = []
    for entry in listed.split(","):
        matches = _matches(uuids, entry.strip())
        if len(matches) != 1:
            break
        chosen += matches
    return chosen


def _matches(uuids: list[str], entry: str) -> list[str]:
    if entry.isdigit():
        return uuids[int(entry) : int(entry) + 1]
    return [uuid for uuid in uuids if entry and uuid.startswith(entry)]


def _uuids() -> list[str]:
    with suppress(ImportError):  # comes with FlashInfer
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return []
        try:
            handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
            return [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
        finally:
            pynvml.nvmlShutdown()
    return []


def comes_to_rest(device: torch.device, *, limit_s: float = REST_LIMIT_S) -> bool:
    """Whether what this process has enqueued on a GPU ends in time; asks again and again, never waits in the driver.

    False also where nothing on the GPU will work in this process again.
    """
    import torch

    deadline = time.monotonic() + limit_s
    try:
        stream = torch.cuda.current_stream(device)
        while not stream.query():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
    except Exception:  # a CUDA error, or no CUDA at all
        return False
    return True
