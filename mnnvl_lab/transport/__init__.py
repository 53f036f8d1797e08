"""Transports: one per mode and fabric, behind one interface (`mnnvl_lab.transport.base`)."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import nvlink_domain

if TYPE_CHECKING:
    from mnnvl_lab.exchange import Exchange
    from mnnvl_lab.ranks.rank import Rank
    from mnnvl_lab.transport.base import Transport

# Named, not imported: a fabric's libraries load when it is opened.
HOST = MappingProxyType(
    {
        "one_sided": "mnnvl_lab.transport.host.one_sided:HostOneSided",
        "two_sided": "mnnvl_lab.transport.host.two_sided:HostTwoSided",
        "pico": "mnnvl_lab.transport.pico.host:HostPico",
    }
)
GPU = MappingProxyType(
    {
        "one_sided": "mnnvl_lab.transport.flashinfer.one_sided:FlashInferOneSided",
        "two_sided": "mnnvl_lab.transport.flashinfer.two_sided:FlashInferTwoSided",
        "pico": "mnnvl_lab.transport.pico.gpu:GpuPico",
    }
)
EVERY_FABRIC = MappingProxyType(
    {
        "allgather_reducescatter": "mnnvl_lab.transport.collectives:AllgatherReducescatter",
        "all_to_all": "mnnvl_lab.transport.collectives:AllToAll",
    }
)


def open_transport(rank: Rank, exchange: Exchange) -> Transport:
    """Open the transport of this mode on the rank's fabric. Collective over the EP group.

    Raises:
        Refused: the exchange breaks a limit, or is not the same on all ranks; or the fabric does not span the machines
            that the EP group is on.
        WorkspaceMismatch: one-sided over a workspace of another group; two-sided says so at its first dispatch.
    """
    from mnnvl_lab.transport.validation import agree, check_exchange

    agree(rank.group("ep"), vars(exchange), None, call="open a transport")
    check_exchange(exchange)
    _require_span(rank, exchange.mode)
    table = (HOST if rank.fabric == "host" else GPU) | EVERY_FABRIC
    module, name = table[exchange.mode].split(":")
    rank.phase = "open"
    return getattr(import_module(module), name)(rank, exchange)


def _require_span(rank: Rank, mode: str) -> None:
    """Check that a workspace can span the EP group.

    Raises:
        Refused: its ranks are on machines that share no memory, which the fabric needs.
    """
    group = rank.group("ep")
    if mode in EVERY_FABRIC or rank.shares_memory(group.ranks):
        return
    if rank.fabric == "host":
        needed = "its workspace is memory that ranks share"
    elif not _one_domain(group.allgather(nvlink_domain(rank.device.index), call="compare NVLink domains")):
        needed = "its workspace needs NVLink between all GPUs, and they are in no common NVLink domain (MNNVL)"
    else:
        return
    where = ", ".join(f"rank {r} on {rank.hosts[r]}" for r in group.ranks)
    raise Refused(
        f"mode {mode} on fabric {rank.fabric} with {where}: {needed}, so that all ranks of an EP group must be on one "
        f"machine; use one host, pipeline stages of one host each, or a baseline ({', '.join(EVERY_FABRIC)}), which "
        "sends over the network"
    )


def _one_domain(domains: list[str]) -> bool:
    return bool(domains[0]) and len(set(domains)) == 1
