"""What a round between processes costs on `host`, beside copying the same bytes and beside Gloo.

`python -m benchmarks.host_transport`. All in one run on the same ranks, so that the ratios hold on a busy machine too.
A round is (prepare,) dispatch and combine; of each repetition the slowest rank counts, and the median is shown.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.on_ranks import time_bytes, time_opening, time_round
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks

HIDDEN, EXPERTS, TOP_K = 7168, 256, 8
MODES = {
    "one_sided": {},
    "one_sided, payload in workspace": {"payload_in_workspace": True},
    "two_sided": {},
    "all_to_all": {},
    "allgather_reducescatter": {},
}


def exchange(layout: Layout, name: str, tokens: int) -> Exchange:
    shape = {"max_tokens": tokens, "hidden": HIDDEN, "experts": EXPERTS, "top_k": TOP_K}
    return Exchange(mode=name.split(",")[0], layout=layout, **shape, **MODES[name])


def slowest(per_rank: list[dict[str, list[float]]]) -> dict[str, float]:
    """Median over repetitions of the slowest rank."""
    return {
        name: statistics.median(map(max, zip(*(times_ms[name] for times_ms in per_rank), strict=True)))
        for name in per_rank[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    layout = Layout(dp=args.ranks)
    print(f"host, EP{args.ranks}, {args.tokens} tokens, hidden {HIDDEN}, {EXPERTS} experts, top-{TOP_K}, bf16; ms")
    with Ranks(layout) as ranks:
        plain = exchange(layout, "one_sided", args.tokens)
        floor = slowest(ranks.run(time_bytes, plain, args.repeats))
        print("\n".join(f"{name:34} {ms:8.1f}" for name, ms in floor.items()))
        for name in MODES:
            times_ms = slowest(ranks.run(time_round, exchange(layout, name, args.tokens), args.repeats))
            phases = "  ".join(f"{phase} {ms:.1f}" for phase, ms in times_ms.items() if phase != "round")
            ratio = times_ms["round"] / floor["copied twice"]
            print(f"{name:34} {times_ms['round']:8.1f}  {ratio:5.1f} x copying twice   {phases}")
        for name in ("one_sided", "two_sided"):
            opening = slowest(ranks.run(time_opening, exchange(layout, name, 128), args.repeats))
            print(f"{name + ', 128 tokens':34} {opening['open, check, close']:8.1f}  open, check, close")


if __name__ == "__main__":
    main()
