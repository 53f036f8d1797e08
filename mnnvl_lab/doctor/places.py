"""Where ranks run, compared: host name, temporary directory and network namespace must be one where handles need it."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnnvl_lab.doctor.sharing import identity_of, network_namespace

if TYPE_CHECKING:
    from mnnvl_lab.ranks import Ranks
    from mnnvl_lab.ranks.rank import Rank


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one rank runs."""

    hostname: str
    temporary_directory: str
    temporary_identity: str
    network_namespace: str


def place_of(rank: Rank) -> Place:
    """Rank function: where this rank runs."""
    directory = tempfile.gettempdir()
    return Place(
        hostname=socket.gethostname(),
        temporary_directory=directory,
        temporary_identity=identity_of(directory),
        network_namespace=network_namespace(),
    )


def check_ranks(ranks: Ranks) -> tuple[str, ...]:
    """What in the places of warm ranks would keep them from passing file descriptors; empty if nothing does."""
    return place_problems(ranks.run(place_of))


RULES: tuple[tuple[Callable[[Place], str], str, str], ...] = (
    (
        lambda place: place.hostname,
        "host names",
        "FlashInfer refuses to pass file descriptors between them; give containers one host name (docker run "
        "--hostname), or use GPUs of one fabric cluster with IMEX",
    ),
    (
        lambda place: place.temporary_identity,
        "temporary directories",
        "sockets made in one are not found in the other, and the exchange ends after 30 s; share one (docker run "
        "--volume /tmp:/tmp), or set TMPDIR to a shared one",
    ),
    (
        lambda place: place.network_namespace,
        "network namespaces",
        "rendezvous and NCCL may not connect; start containers with --network host",
    ),
)
"""What must be equal, its name, and the consequence with its remedy."""


def place_problems(places: Sequence[Place]) -> tuple[str, ...]:
    """The rules that the ranks' places break, each with the first two ranks that differ."""
    return tuple(
        f"ranks 0 and {other} have different {name} ({read(places[0])} and {read(places[other])}): {consequence}"
        for read, name, consequence in RULES
        if (other := _first_other([read(place) for place in places])) is not None
    )


def _first_other(values: Sequence[str]) -> int | None:
    return next((i for i, value in enumerate(values) if value != values[0]), None)
