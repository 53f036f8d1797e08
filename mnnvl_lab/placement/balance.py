"""A load-balanced placement: DeepSeek's EPLB, after the description in its README (github.com/deepseek-ai/EPLB, MIT).

Three steps. Groups of experts are packed onto nodes, so that nodes have about equal loads; within a node the experts
with most load per replica get further replicas; the replicas are packed onto the node's ranks. With one group and one
node this is the README's global policy. Both packings are greedy: the heaviest first, each to the lightest that has
room. Replication is greedy too, and there greedy is best: no other counts have a smaller largest load per replica.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mnnvl_lab.arguments import as_axis
from mnnvl_lab.errors import Refused, require_count
from mnnvl_lab.placement.maps import Placement


def balanced(
    copies: Sequence[float], ep_size: int, *, redundant: int = 0, groups: int = 1, nodes: int = 1
) -> Placement:
    """The placement that EPLB decides on for these loads.

    Args:
        copies: load of each logical expert, such as copies counted over past rounds.
        ep_size: R.
        redundant: slots beyond one per expert.
        groups: groups of consecutive experts that should share a node, as group-limited routing has them; used where
            `nodes` divides it, as in the README, else the placement is global.
        nodes: of the EP group.

    Raises:
        Refused: slots, experts or ranks do not divide evenly, or a load is negative.
    """
    load_E = _loads(copies)
    groups, nodes = (groups, nodes) if groups % nodes == 0 else (1, 1)
    _require_even(len(load_E), ep_size, redundant, groups, nodes)
    slots = [
        expert
        for members in _members_of_nodes(load_E, groups, nodes)
        for expert in _node(load_E, members, slots=(len(load_E) + redundant) // nodes, ranks=ep_size // nodes)
    ]
    return Placement(name="balanced", experts=len(load_E), ep_size=ep_size, slots=tuple(slots))


def replicated(load_E: np.ndarray, slots: int) -> list[int]:
    """The expert of each slot, so that the largest load per replica is as small as `slots` allow.

    One slot each, then one more at a time for the expert with most load per replica.
    """
    held, count_E = list(range(len(load_E))), np.ones(len(load_E))
    for _ in range(slots - len(load_E)):
        held.append(int(np.argmax(load_E / count_E)))
        count_E[held[-1]] += 1
    return held


def packed(loads: Sequence[float], packs: int) -> list[list[int]]:
    """Indices of `loads` in packs of equal count: the heaviest first, each into the lightest pack that has room."""
    room = len(loads) // packs
    contents: list[list[int]] = [[] for _ in range(packs)]
    weight = np.zeros(packs)
    for item in np.argsort(-np.asarray(loads, dtype=float), kind="stable").tolist():
        free = [pack for pack in range(packs) if len(contents[pack]) < room]
        lightest = min(free, key=weight.__getitem__)
        contents[lightest].append(item)
        weight[lightest] += loads[item]
    return contents


def _members_of_nodes(load_E: np.ndarray, groups: int, nodes: int) -> list[list[int]]:
    """The experts of each node, group by group."""
    size = len(load_E) // groups
    on_nodes = packed(load_E.reshape(groups, size).sum(axis=1), nodes) if nodes > 1 else [list(range(groups))]
    return [[expert for g in chosen for expert in range(g * size, (g + 1) * size)] for chosen in on_nodes]


def _node(load_E: np.ndarray, members: list[int], *, slots: int, ranks: int) -> list[int]:
    """The experts in the slots of a node's ranks, rank by rank."""
    own_E = load_E[members]
    held = replicated(own_E, slots)
    share_E = own_E / np.bincount(held)
    return [members[held[slot]] for pack in packed(share_E[held], ranks) for slot in pack]


def _loads(copies: Sequence[float]) -> np.ndarray:
    load_E = np.array(as_axis("copies", copies), dtype=float)
    if load_E.ndim != 1 or not np.isfinite(load_E).all() or (load_E < 0).any():
        raise Refused(f"copies have the shape {load_E.shape}: give one count per expert, none negative or infinite")
    return load_E


def _require_even(experts: int, ep_size: int, redundant: int, groups: int, nodes: int) -> None:
    require_count("ep_size", ep_size)
    require_count("redundant", redundant, least=0, remedy="give 0 or more replicas")
    physical = experts + redundant
    if physical % ep_size:
        raise Refused(
            f"{physical} physical experts on {ep_size} ranks: EPLB gives every rank as many slots; use redundant "
            f"{redundant + -physical % ep_size}"
        )
    if ep_size % nodes or experts % groups:
        raise Refused(
            f"{ep_size} ranks on {nodes} nodes and {experts} experts in {groups} groups: both must divide evenly; "
            "use groups=1, nodes=1 for the global policy"
        )
