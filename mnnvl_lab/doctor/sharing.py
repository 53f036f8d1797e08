"""How ranks would map one another's GPU memory: the kind of handle, and what each kind needs of the system.

FlashInfer 0.7.2 (`comm/mnnvl.py`) takes fabric handles if every rank's GPU supports them and is in a fabric cluster,
else POSIX file descriptors, which it passes through a socket in the temporary directory (`comm/fd_exchange.py`). It
does not look whether the process may create fabric handles: that takes an IMEX channel (CUDA driver API,
`CUmemAllocationHandleType`; NVIDIA IMEX guide, IMEX channels).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mnnvl_lab.hardware import fabric_states

FABRIC, POSIX_FD = "fabric", "POSIX file descriptor"
CHANNELS = Path("/dev/nvidia-caps-imex-channels")
IMEX_DRIVER = "nvidia-caps-imex-channels"
SOCKET_PATH_BYTES = 107  # sun_path of AF_UNIX on Linux, less its closing zero
EXCHANGE_NAME_BYTES = len("/cuda_fd_xchg_4194304_127_abcdefgh/fd.sock")  # largest pid, 128 ranks, a random suffix
CUDA_13_DRIVER = 580  # CUDA 13 release notes
CFT_DRIVER = 615  # counted writes of FlashInfer's main branch
ATTRIBUTE = 128  # CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED
ASK_DRIVER = f"""
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
count, value = ctypes.c_int(), ctypes.c_int()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
for i in range(count.value):
    assert cuda.cuDeviceGetAttribute(ctypes.byref(value), {ATTRIBUTE}, i) == 0
    print(value.value)
"""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What decides on handles, and what they need.

    Attributes:
        fabric_attribute: of each visible GPU, whether the driver supports fabric handles; empty where it did not say.
        fabric_states: of each visible GPU, NVML's state of the fabric and its cluster, such as `completed 3f2a...-1`;
            empty where NVML does not say.
        imex_driver: whether the kernel lists the character device of IMEX channels.
        imex_channels: channel files, and which of them this process may open.
        temporary_directory: where sockets for file descriptors are made; `temporary_identity` is its device and inode.
        temporary_writable: whether this process may make files there.
        hostname, network_namespace: of this process; the namespace is empty where the system does not say.
    """

    fabric_attribute: tuple[bool, ...] = ()
    fabric_states: tuple[str, ...] = ()
    imex_driver: bool = False
    imex_channels: tuple[str, ...] = ()
    imex_readable: tuple[str, ...] = ()
    temporary_directory: str = "/tmp"
    temporary_identity: str = ""
    temporary_writable: bool = True
    hostname: str = ""
    network_namespace: str = ""

    @property
    def in_cluster(self) -> bool:
        """Whether every visible GPU has joined a fabric cluster."""
        return bool(self.fabric_states) and all(state.startswith("completed ") for state in self.fabric_states)

    @property
    def handle_type(self) -> str:
        """Kind of handle that FlashInfer will ask for, if all ranks see what this process sees."""
        return FABRIC if self.fabric_attribute and all(self.fabric_attribute) and self.in_cluster else POSIX_FD


def read_sharing(*, gpus: int = 0) -> Sharing:
    """Look at this process and its machine.

    Args:
        gpus: how many are visible; without any the driver is not asked.
    """
    directory = tempfile.gettempdir()
    channels = tuple(sorted(map(str, CHANNELS.glob("channel*")))) if CHANNELS.is_dir() else ()
    return Sharing(
        fabric_attribute=_fabric_attributes() if gpus else (),
        fabric_states=fabric_states() if gpus else (),
        imex_driver=_lists_imex(Path("/proc/devices")),
        imex_channels=channels,
        imex_readable=tuple(channel for channel in channels if os.access(channel, os.R_OK | os.W_OK)),
        temporary_directory=directory,
        temporary_identity=identity_of(directory),
        temporary_writable=os.access(directory, os.W_OK | os.X_OK),
        hostname=socket.gethostname(),
        network_namespace=network_namespace(),
    )


def identity_of(directory: str) -> str:
    """Device and inode of a directory: equal where two processes see the same one."""
    status = os.stat(directory)
    return f"{status.st_dev}:{status.st_ino}"


def network_namespace() -> str:
    """Of this process, such as `net:[4026531840]`; empty where the system does not say."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/net")
    return ""


def _lists_imex(devices: Path) -> bool:
    with suppress(OSError):
        return IMEX_DRIVER in devices.read_text().split()
    return False


def _fabric_attributes() -> tuple[bool, ...]:
    """Of each GPU that CUDA shows. In another process: CUDA, once started, must not be forked."""
    with suppress(OSError, subprocess.SubprocessError):
        words = [sys.executable, "-c", ASK_DRIVER]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
        return tuple(line == "1" for line in done.stdout.split())
    return ()


def obstacles(sharing: Sharing) -> Iterator[str]:
    """What keeps ranks from sharing memory, each with its remedy."""
    if sharing.handle_type == FABRIC and not sharing.imex_readable:
        yield f"no IMEX channel can be opened, and FlashInfer will ask for fabric handles: {_imex_remedy(sharing)}"
    if sharing.handle_type == POSIX_FD and not sharing.temporary_writable:
        yield (
            f"the temporary directory {sharing.temporary_directory} is not writable: ranks pass file descriptors "
            "through sockets there; set TMPDIR to one that is"
        )
    length = len(os.fsencode(sharing.temporary_directory)) + EXCHANGE_NAME_BYTES
    if sharing.handle_type == POSIX_FD and length > SOCKET_PATH_BYTES:
        yield (
            f"paths of sockets in {sharing.temporary_directory} may have {length} bytes: a Unix socket takes at most "
            f"{SOCKET_PATH_BYTES}; set TMPDIR to a shorter path, such as /tmp"
        )


def _imex_remedy(sharing: Sharing) -> str:
    fails = "cuMemCreate fails with 'operation not permitted'"
    if not sharing.imex_driver:
        return f"{fails}; load a driver whose /proc/devices lists {IMEX_DRIVER}"
    if not sharing.imex_channels:
        return f"{fails}; make {CHANNELS}/channel0 (mknod, major number in /proc/devices) and give it to the container"
    return f"{fails}; let this user open {sharing.imex_channels[0]}, or give that device to the container"


def sharing_facts(sharing: Sharing, *, driver: str, p2p: Sequence[tuple[int, int]]) -> dict[str, str]:
    """What was found, in words.

    Args:
        driver: version, such as `580.82.07`.
        p2p: pairs of GPUs that reach each other over NVLink.
    """
    readable, channels = len(sharing.imex_readable), len(sharing.imex_channels)
    listed = "driver lists them" if sharing.imex_driver else "driver lists none"
    return {
        "handles": f"{sharing.handle_type}: {_why(sharing)}",
        "IMEX channels": f"{readable} of {channels} can be opened ({listed})",
        "temporary directory": f"{sharing.temporary_directory} ({sharing.temporary_identity or 'not looked at'})",
        "host": f"{sharing.hostname or 'not named'}, {sharing.network_namespace or 'network namespace not known'}",
        "driver branch": str(branch_of(driver) or "not known"),
        "peers": ", ".join(f"{i}-{j}" for i, j in p2p) or "no pair over NVLink",
    }


def _why(sharing: Sharing) -> str:
    if not sharing.fabric_attribute:
        return "the driver did not say whether it has others"
    if not all(sharing.fabric_attribute):
        return "the driver has no fabric handles for every GPU"
    if not sharing.in_cluster:
        return (
            f"GPUs are in no fabric cluster ({', '.join(dict.fromkeys(sharing.fabric_states)) or 'NVML does not say'})"
        )
    return "every GPU supports them and is in a fabric cluster"


def sharing_notes(sharing: Sharing, *, driver: str, p2p: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """What does not stop ranks here but is good to know."""
    return tuple(_notes(sharing, branch_of(driver), p2p))


def _notes(sharing: Sharing, branch: int | None, p2p: Sequence[tuple[int, int]]) -> Iterator[str]:
    if sharing.handle_type == POSIX_FD:
        yield (
            "file descriptors reach processes of one host alone: ranks in several containers need one host name and "
            "one temporary directory (docker run --hostname, --volume /tmp:/tmp); compare these lines in each"
        )
    unreached = [(i, j) for i in range(len(sharing.fabric_attribute)) for j in range(i) if (j, i) not in set(p2p)]
    if p2p and unreached:
        pairs = ", ".join(f"{j}-{i}" for i, j in unreached)
        yield f"GPUs {pairs} do not reach each other over NVLink: choose others with CUDA_VISIBLE_DEVICES"
    if branch is not None and branch < CUDA_13_DRIVER:
        yield f"driver branch {branch}: builds for CUDA 13 need {CUDA_13_DRIVER} or newer; use builds for CUDA 12"
    if branch is not None and branch < CFT_DRIVER:
        yield f"driver branch {branch}: counted writes (CFT) of FlashInfer's main branch need {CFT_DRIVER} or newer"


def branch_of(driver: str) -> int | None:
    """The branch of a driver's version: 580 of `580.82.07`; None if it names none."""
    first = driver.partition(".")[0]
    return int(first) if first.isdigit() else None
