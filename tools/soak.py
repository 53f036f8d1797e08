"""Long campaigns of faults on rank processes; what came of each is kept for `tools.reliability`.

    python -m tools.soak                         all campaigns, on this machine's processor
    python -m tools.soak kills fuzz --share 0.1  a tenth of two of them
    python -m tools.soak kills hangs fuzz --fabric nvlink --ranks 2 --share 0.2
    python -m tools.soak endurance --fabric nvlink --ranks 2 --rounds 1000000

A campaign stops at the first fault that is not survived, and says how to repeat it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tqdm.auto import tqdm

from mnnvl_lab import datasets, records
from mnnvl_lab.cli.arguments import whole_in
from mnnvl_lab.cli.sweep import MOST_SEED
from mnnvl_lab.errors import Hang, RankError
from mnnvl_lab.faults import crashes, races
from mnnvl_lab.faults import fuzz as fuzz_faults
from mnnvl_lab.faults import hangs as hang_faults
from mnnvl_lab.faults.broken_protocols import VARIANTS
from mnnvl_lab.faults.crashes import Crash
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.run import measure_point
from mnnvl_lab.ranks import Ranks
from tests.test_fuzz import require_due
from tests.test_fuzz import trials as random_trials
from tools import endurance as endured
from tools.arguments import SHARE, add_fabric, file_path, run_tool, tool_parser

OUT = datasets.DATA / "reliability"
MODES = ("one_sided", "two_sided")
KILLS, HANGS, FUZZED_ROUNDS, DELAYED_ROUNDS = 100, 20, 10_000, 3_200
NAMED_WITHIN_S = 5.0
ROUND_LIMIT_S = 2.0
TRIALS_A_CALL = 50
RIGHT_ROUNDS_A_TRIAL = 1.6  # on average: two, but none where what is refused is the exchange itself
DELAYED_SIZES = range(1, 17)
SOME_TIME = "any moment"
SOME_TIME_S = 0.5
MOST_ROUNDS = 10**9
Row = dict[str, object]


def kills(fabric: str, size: int, share: float, seed: int) -> Iterator[Row]:
    """Ranks that die in random phases of random causes: named, cleaned up, and the next call works."""
    chance, layout = random.Random(seed), Layout(dp=size)
    with Ranks(layout, fabric=fabric) as ranks:
        ranks.run(measure_point, hang_faults.small_point(layout), timeout_s=600)  # compiles the kernels where need be
        processes = len(psutil.Process().children(recursive=True))
        segments = set(ranks._cluster.segment_dir.iterdir())
        for index in range(_at_least_one(KILLS * share)):
            mode = chance.choice(MODES)
            target = Crash(
                rank=chance.randrange(size),
                phase=chance.choice((*crashes.PHASES, SOME_TIME)),
                cause=chance.choice([cause for cause in crashes.CAUSES if cause != "cuda" or fabric != "host"]),
            )
            point = hang_faults.small_point(layout, mode=mode)
            named_s = _name(ranks, point, target, seed + index)
            assert named_s < NAMED_WITHIN_S, f"{target} took {named_s:.1f} s"
            assert len(ranks.run(measure_point, point)) == size
            assert len(psutil.Process().children(recursive=True)) == processes, f"{target} left a process"
            assert set(ranks._cluster.segment_dir.iterdir()) == segments, f"{target} left a segment"
            cause = "SIGKILL" if target.phase == SOME_TIME else target.cause
            yield {"fault": f"{cause} in {target.phase}", "mode": mode, "seconds": named_s}


def _name(ranks: Ranks, point, target: Crash, seed: int) -> float:
    """Let a rank die; seconds to an error that names it, its phase and the cause."""
    if target.phase == SOME_TIME:
        error, took_s = _error_of(ranks, crashes.crash_some_time, point, target.rank, seed, SOME_TIME_S)
        assert error.rank == target.rank, f"{target}: {error}"
        return took_s
    error, took_s = _error_of(ranks, crashes.crash_while_measuring, point, target)
    right = (
        error.rank == target.rank
        and error.phase.startswith(target.phase)
        and crashes.WORDS[target.cause] in error.cause
    )
    assert right, f"{target}: {error}"
    return took_s


def _error_of(ranks: Ranks, fn: Callable, *args, **kwargs) -> tuple[RankError, float]:
    """The error that a call must end in, and after how many seconds."""
    began_s = time.monotonic()
    try:
        ranks.run(fn, *args, **kwargs)
    except RankError as error:
        return error, time.monotonic() - began_s
    raise AssertionError(f"{fn.__name__}{args} {kwargs} went unnoticed")


def hangs(fabric: str, size: int, share: float, seed: int) -> Iterator[Row]:
    """Ranks that stay away: named within the limit of a round and a second; the next call works."""
    chance, layout = random.Random(seed), Layout(dp=size)
    with Ranks(layout, fabric=fabric) as ranks:
        for _ in range(_at_least_one(HANGS * share)):
            mode, phase, culprits = chance.choice(MODES), chance.choice(("dispatch", "combine")), chance.randrange(size)
            point = hang_faults.small_point(layout, mode=mode)
            ranks.run(measure_point, point, timeout_s=600)
            how = {"culprits": culprits, "phase": phase, "rounds": 1, "round_limit_s": ROUND_LIMIT_S}
            hang, took_s = _error_of(ranks, hang_faults.stay_away, point, **how)
            assert isinstance(hang, Hang), hang
            assert hang.hang_report.culprits == (culprits,), hang
            beyond_s = took_s - ROUND_LIMIT_S
            yield {"fault": f"a rank stays away from {phase}", "mode": mode, "seconds": beyond_s}


def fuzz(fabric: str, size: int, share: float, seed: int) -> Iterator[Row]:
    """Random rounds and mutations: right, or refused by all ranks in the same words."""
    rows: list[Row] = []
    examples = _at_least_one(FUZZED_ROUNDS * share / RIGHT_ROUNDS_A_TRIAL / TRIALS_A_CALL)
    with Ranks(Layout(dp=size), fabric=fabric) as ranks, tqdm(total=examples, desc="fuzz calls") as bar:

        @settings(
            max_examples=examples,
            phases=(Phase.generate,),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(random_trials(size), min_size=TRIALS_A_CALL, max_size=TRIALS_A_CALL))
        def campaign(chosen):
            require_due(chosen, ranks.run(fuzz_faults.run_fuzz_cases, chosen, timeout_s=600))
            rows.extend(
                {"fault": trial.invalid_input or "none", "mode": trial.mode, "rounds": trial.rounds} for trial in chosen
            )
            bar.update()

        campaign()
    yield from rows


def delays(fabric: str, size: int, share: float, seed: int) -> Iterator[Row]:
    """The host transports with random pauses wherever order matters, on 1 to 16 ranks."""
    rounds = _at_least_one(DELAYED_ROUNDS * share / len(MODES) / len(DELAYED_SIZES))
    with Ranks(Layout(dp=max(DELAYED_SIZES)), fabric="host") as ranks:
        for size in DELAYED_SIZES:
            ranks.use(Layout(dp=size))
            for mode in MODES:
                ranks.run(races.stress, mode, rounds=rounds, seed=seed + size, timeout_s=600, round_limit_s=60)
                yield {"fault": f"delays on {size} ranks", "mode": mode, "rounds": rounds}


def variants(fabric: str, size: int, share: float, seed: int) -> Iterator[Row]:
    """Protocols with a step missing are caught; the sound ones that they were made from pass."""
    with Ranks(Layout(dp=3), fabric="host") as ranks:
        for variant in VARIANTS:
            assert any(ranks.run(races.challenge, variant.name)), f"{variant.name} went unnoticed"
            assert not any(ranks.run(races.challenge, variant.name, sound=True)), f"{variant.sound.__name__} is wrong"
            yield {"fault": variant.title, "mode": variant.transport.mode}


def endurance(
    fabric: str, size: int, share: float, seed: int, rounds: int | None = None, seconds: float = 3600.0
) -> Iterator[Row]:
    """Very many rounds of every mode, each compared on the device. A wrong one does not end the campaign."""
    due = rounds or _at_least_one(share * endured.ROUNDS[fabric])
    yield from endured.endure(fabric, size, rounds=due, seed=seed, seconds=seconds)


CAMPAIGNS: dict[str, Callable[..., Iterator[Row]]] = {
    campaign.__name__: campaign for campaign in (kills, hangs, fuzz, delays, variants, endurance)
}


def _at_least_one(count: float) -> int:
    return max(1, round(count))


def keep(out: Path, name: str, fabric: str, rows: list[Row], *, label: str) -> Path:
    """One file per campaign and fabric, with where it comes from; written anew after every row."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{label}_{name}.json"
    path.write_text(json.dumps({"provenance": records.provenance(fabric=fabric), "rows": rows}, indent=1) + "\n")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = tool_parser("tools.soak", __doc__)
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help=f"of {', '.join(CAMPAIGNS)}; all by default")
    add_fabric(parser)
    parser.add_argument("--share", type=SHARE, default=1.0, metavar="X", help="of the full campaign (default 1)")
    parser.add_argument("--seed", type=whole_in(0, MOST_SEED), default=0, metavar="N", help="of all chance (default 0)")
    parser.add_argument("--rounds", type=whole_in(1, MOST_ROUNDS), metavar="N", help="of endurance, for each transport")
    parser.add_argument(
        "--seconds", type=whole_in(1, MOST_ROUNDS), default=3600, metavar="S", help="of endurance, each"
    )
    parser.add_argument(
        "--out", type=file_path, default=OUT, metavar="DIR", help="of the results (default data/reliability)"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.campaigns) - set(CAMPAIGNS):
        parser.error(f"no campaign {', '.join(sorted(unknown))}: there are {', '.join(CAMPAIGNS)}")
    wrong = [name for name in options.campaigns or CAMPAIGNS if _run(name, options)]
    return int(bool(wrong))


def _run(name: str, options: argparse.Namespace) -> bool:
    """Run a campaign and keep it; whether rounds came out wrong."""
    how = {"rounds": options.rounds, "seconds": options.seconds} if name == "endurance" else {}
    found = CAMPAIGNS[name](options.fabric, options.ranks, options.share, options.seed, **how)
    rows = []
    label = f"{options.fabric}_ep{options.ranks}" if how and options.fabric != "host" else options.fabric
    for row in tqdm(found, desc=name):
        rows.append(row)
        path = keep(options.out, name, options.fabric, rows, label=label)
    print(path)
    return any(map(endured.is_wrong, rows))


if __name__ == "__main__":
    sys.exit(run_tool(main))
