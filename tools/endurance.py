"""The campaign `endurance` of `tools.soak`: very many rounds of every mode, each compared on the device."""

from __future__ import annotations

from collections.abc import Iterator

from mnnvl_lab.exchange import Exchange
from mnnvl_lab.faults import endurance
from mnnvl_lab.hardware import count_visible_gpus
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks

ROUNDS = {"host": 640, "nvlink": 1_000_000, "shared_gpu": 100_000}
SHAPES = {
    "host": {"max_tokens": 24, "hidden": 256, "top_k": 4},
    "nvlink": {"max_tokens": 2048, "hidden": 2048, "top_k": 8},
    "shared_gpu": {"max_tokens": 1024, "hidden": 2048, "top_k": 8},
}
EXPERTS_PER_RANK = {"host": 16, "nvlink": 64, "shared_gpu": 32}
BLOCKS = {"host": {"graph_rounds": 8, "replays": 4}}
MULTIPROCESSORS = 132
EXTRA_S = 240.0


def endure(fabric: str, size: int, *, rounds: int, seed: int, seconds: float) -> Iterator[dict[str, object]]:
    """One row per transport: rounds, tokens and what was wrong, of the slowest rank and of all."""
    with Ranks(Layout(dp=size), fabric=fabric) as ranks:
        for name, exchange in endurance.variants(_exchange(fabric, size)).items():
            plan = endurance.Endurance(
                exchange=exchange,
                rounds=rounds,
                masked=exchange.enable_rank_mask,
                seed=seed,
                seconds=seconds,
                **BLOCKS.get(fabric, {}),
            )
            yield _row(name, plan, ranks.run(endurance.endure, plan, timeout_s=seconds + EXTRA_S))


def _exchange(fabric: str, size: int) -> Exchange:
    per_gpu = -(-size // count_visible_gpus()) if fabric == "shared_gpu" else 1
    return Exchange(
        mode="two_sided",
        layout=Layout(dp=size),
        experts=EXPERTS_PER_RANK[fabric] * size,
        sm_limit=MULTIPROCESSORS // per_gpu if per_gpu > 1 else None,
        **SHAPES[fabric],
    )


def _row(name: str, plan: endurance.Endurance, results: list[endurance.Endured]) -> dict[str, object]:
    first = [result.first_wrong_block for result in results if result.first_wrong_block >= 0]
    rounds, seconds = max(result.rounds for result in results), max(result.seconds for result in results)
    return {
        "fault": f"endurance of {name}",
        "mode": plan.exchange.mode,
        "ranks": len(results),
        "rounds": rounds,
        "blocks": results[0].blocks,
        "tokens": sum(result.tokens for result in results),
        "largest_runtime_max": max(result.largest for result in results),
        "wrong": {kind: sum(result.wrong[kind] for result in results) for kind in results[0].wrong},
        "first_wrong_block": min(first, default=None),
        "rounds_per_s": round(rounds / seconds, 1),
        "seconds": round(seconds, 1),
        "notes": sorted({result.note for result in results} - {""}),
    }


def is_wrong(row: dict[str, object]) -> bool:
    return any(row.get("wrong", {}).values())
