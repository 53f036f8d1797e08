"""Transports: a mode on a fabric, behind one interface (`mnnvl_lab.transport.base`)."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnnvl_lab.exchange import Exchange
    from mnnvl_lab.ranks.rank import Rank
    from mnnvl_lab.transport.base import Transport

# Named, not imported: a fabric's libraries load when it is opened.
HOST = MappingProxyType(
    {
        "one_sided": "mnnvl_lab.transport.host.one_sided:HostOneSided",
        "two_sided": "mnnvl_lab.transport.host.two_sided:HostTwoSided",
    }
)
GPU = MappingProxyType(
    {
        "one_sided": "mnnvl_lab.transport.flashinfer.one_sided:FlashInferOneSided",
        "two_sided": "mnnvl_lab.transport.flashinfer.two_sided:FlashInferTwoSided",
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
        Refused: the exchange breaks a limit, or is not the same on all ranks.
        WorkspaceMismatch: one-sided over a workspace of another group; two-sided says so at its first dispatch.
    """
    from mnnvl_lab.transport.validation import agree, check_exchange

    agree(rank.group("ep"), vars(exchange), None)
    check_exchange(exchange)
    table = (HOST if rank.fabric == "host" else GPU) | EVERY_FABRIC
    module, name = table[exchange.mode].split(":")
    rank.phase = "open"
    return getattr(import_module(module), name)(rank, exchange)
