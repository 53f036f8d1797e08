"""Transports: a mode on a fabric, behind one interface (`mnnvl_lab.transport.base`)."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnnvl_lab.ranks.rank import Rank
    from mnnvl_lab.transport.base import Transport
    from mnnvl_lab.transport.exchange import Exchange

# Named, not imported: a fabric's libraries load when it is opened.
HOST = MappingProxyType(
    {
        "one_sided": "mnnvl_lab.transport.host_one_sided:HostOneSided",
        "two_sided": "mnnvl_lab.transport.host_two_sided:HostTwoSided",
    }
)
GPU = MappingProxyType(
    {
        "one_sided": "mnnvl_lab.transport.flashinfer_one_sided:FlashInferOneSided",
        "two_sided": "mnnvl_lab.transport.flashinfer_two_sided:FlashInferTwoSided",
    }
)
EVERY_FABRIC = MappingProxyType(
    {
        "allgather_reducescatter": "mnnvl_lab.transport.baselines:AllgatherReducescatter",
        "all_to_all": "mnnvl_lab.transport.baselines:AllToAll",
    }
)


def open_transport(rank: Rank, exchange: Exchange) -> Transport:
    """Open the transport of this mode on the rank's fabric. Collective over the EP group.

    Raises:
        Refused: the exchange breaks a limit, or is not the same on all ranks.
        WorkspaceMismatch: one-sided over a workspace of another group; two-sided says so at its first dispatch.
    """
    from mnnvl_lab.transport.checks import agree, check_exchange

    agree(rank.group("ep"), vars(exchange), None)
    check_exchange(exchange)
    table = (HOST if rank.fabric == "host" else GPU) | EVERY_FABRIC
    module, name = table[exchange.mode].split(":")
    rank.phase = "open"
    return getattr(import_module(module), name)(rank, exchange)
