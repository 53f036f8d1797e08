"""Which address and interface of this machine lead to another one, and what memory its processes share."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
Say = Callable[[str], None]
"""Takes what a start waits for, in words."""
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
DISCARD_PORT = 9  # any port will do: connecting a UDP socket only looks up the route


def address_towards(host: str) -> str:
    """IPv4 address from which this machine reaches `host`. Nothing is sent.

    Args:
        host: name or address.

    Raises:
        OSError: the name is unknown, or there is no route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, DISCARD_PORT))
        return probe.getsockname()[0]


def interface_of(address: str) -> str:
    """Name of the network interface that has an address; empty if none has."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if any(a.address == address for a in addresses)), "")


def own_address(peer: str) -> str:
    """Address of this machine for its ranks' connections: of the interface in `GLOO_SOCKET_IFNAME`, if that is set,
    else the one from which it reaches `peer`."""
    given = os.environ.get(INTERFACE_VARIABLES[0], "")
    for address in psutil.net_if_addrs().get(given, ()):
        if address.family == socket.AF_INET:
            return address.address
    return address_towards(peer)


def use_interface_towards(peer: str) -> str:
    """Have Gloo and NCCL use the interface from which this machine reaches `peer`, where the environment names none.

    Returns:
        The interface that Gloo uses.
    """
    interface = interface_of(address_towards(peer))
    for name in INTERFACE_VARIABLES if interface else ():
        os.environ.setdefault(name, interface)
    return os.environ.get(INTERFACE_VARIABLES[0], "")


def shared_memory_id() -> str:
    """Equal for two processes if they share POSIX memory: same boot of the same kernel, same /dev/shm, and pids that
    mean the same to both, since a segment's path names the process that made it."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    try:
        return f"{boot or socket.gethostname()}:{os.stat('/dev/shm').st_dev}"
    except OSError:
        return boot or socket.gethostname()
