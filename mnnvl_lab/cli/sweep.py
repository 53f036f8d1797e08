"""`sweep`: measure a layout over modes, tokens, routings and formats; every result checked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mnnvl_lab.cli.arguments import (
    EPILOG_OF_LAYOUT,
    FORMATS,
    add_command,
    add_layout,
    add_shape,
    layout_of,
    number_in,
    path_name,
    shape_of,
    token_counts,
    whole_in,
)
from mnnvl_lab.errors import MOST_COUNT, Refused

if TYPE_CHECKING:
    from mnnvl_lab.measure import Point, Sweep

MOST_SEED = 2**63 - 1  # records keep it as int64
MOST_SAMPLES = 1_000_000
MOST_SECONDS = 86_400
MOST_HOST_RANKS = 256
"""Each is a process of this machine; the kernels' protocols end at 64 and 128 ranks."""

CAPACITIES = {
    "--max-tokens": "capacity: tokens per rank for which the workspace is sized (default the runtime max)",
    "--runtime-max-tokens": "tokens per rank on which all ranks agree for a round (default the fullest rank's)",
}
WORDS = f"""{EPILOG_OF_LAYOUT}
  mode     one_sided, two_sided, pico, or a baseline: allgather_reducescatter, all_to_all
  fabric   what carries the bytes: host (processes and shared memory, runs anywhere), nvlink (one GPU per rank),
           shared_gpu (several ranks per GPU under MPS; no baselines there)
  tokens   tokens of each rank: 128 for all ranks, or 1,4,0,128 for one count per rank of the EP group; at most
           runtime max, on which all ranks agree for a round; that is at most max tokens, the workspace's capacity
  padding  rows without a token behind those of each rank: 512 for all ranks, or 0,512,512,512; their choices say
           --padding-id: -1 (FlashInfer 0.7.2 sends such rows to EP rank 0), E (the number of experts), or an expert's
           id; --invalid-ids drop leaves those with -1 or E out, on host alone
  routing  how tokens choose experts: uniform, balanced, zipf:1.2, log_normal:1, hot_expert:0.5, hot_rank:0.5
  clock    eager: one operation after a barrier; graph: rounds back to back; kernel: device span. They never mix;
           graph and kernel need a GPU
  point    one of each; measured, then kept: a sweep that is killed loses at most the point in progress
"""


def add(commands) -> None:
    parser = add_command(
        commands,
        "sweep",
        help="measure latencies, every result checked, into a record file",
        description="Starts one process per rank, opens each mode, checks dispatch and combine against the oracle, "
        "times\nthem, checks again, and keeps every rank's samples.",
        examples="""sweep --tp 2 --dp 2 --hidden 1024 --experts 32 --top-k 4 --tokens 1 16 128 --out out/host.parquet
sweep --dp 8 --model deepseek-v3 --modes one_sided two_sided --fabric nvlink --clock graph --out out/h100.parquet
sweep --dp 4 --hidden 1024 --experts 32 --top-k 4 --tokens 16 1,4,0,128 --max-tokens 512 --out out/ragged.parquet
sweep --dp 4 --hidden 1024 --experts 32 --top-k 4 --tokens 64 --padding 0 0,64,64,64 --out out/padded.parquet
sweep --tp 2 --dp 2 --hidden 1024 --experts 32 --top-k 4 --tokens 1 16 128 --out out/host.parquet --resume""",
        words=WORDS,
    )
    add_layout(parser)
    add_shape(parser)
    _add_axes(parser)
    _add_padding(parser)
    _add_sampling(parser)
    parser.add_argument("--out", required=True, metavar="FILE", type=path_name, help="record file to write, Parquet")
    parser.add_argument("--resume", action="store_true", help="go on with FILE where an earlier run ended")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def _add_axes(parser) -> None:
    axes = parser.add_argument_group("axes: every combination is a point")
    axes.add_argument("--modes", nargs="+", default=["one_sided", "two_sided"], metavar="MODE", help="see below")
    axes.add_argument(
        "--tokens", nargs="+", type=token_counts, default=[1, 16, 128], metavar="T", help="tokens per rank, see below"
    )
    axes.add_argument(
        "--routing", nargs="+", default=["uniform"], metavar="ROUTING", help="see below (default uniform)"
    )
    axes.add_argument("--format", nargs="+", default=["bf16"], metavar="FORMAT", help=f"{FORMATS} (default bf16)")
    axes.add_argument(
        "--clock", nargs="+", metavar="CLOCK", help="see below (default eager on fabric host, graph on GPUs)"
    )
    for name, meaning in CAPACITIES.items():
        axes.add_argument(name, nargs="+", type=whole_in(1, MOST_COUNT), metavar="T", help=meaning)
    parser.add_argument("--fabric", default="host", metavar="FABRIC", help="host, shared_gpu or nvlink (default host)")
    parser.add_argument(
        "--seed", type=whole_in(0, MOST_SEED), default=0, metavar="N", help="of routing and payloads (default 0)"
    )


def _add_padding(parser) -> None:
    group = parser.add_argument_group("rows that carry no token of their own")
    group.add_argument(
        "--padding", nargs="+", type=token_counts, default=[0], metavar="P", help="an axis, see below (default 0)"
    )
    group.add_argument("--padding-id", default="-1", metavar="ID", help="-1, E, or an expert's id (default -1)")
    group.add_argument("--invalid-ids", default="as_kernel", metavar="HOW", help="as_kernel (default) or drop")
    group.add_argument(
        "--replicas",
        nargs="+",
        type=whole_in(1, MOST_HOST_RANKS),
        default=[1],
        metavar="N",
        help="an axis: ranks in a row that send the same tokens, as TP ranks do (default 1)",
    )


def _add_sampling(parser) -> None:
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--samples",
        type=whole_in(1, MOST_SAMPLES),
        default=200,
        metavar="N",
        help="most iterations per point (default 200)",
    )
    sampling.add_argument(
        "--warmup", type=whole_in(0, MOST_SAMPLES), default=3, metavar="N", help="rounds before the first (default 3)"
    )
    sampling.add_argument(
        "--budget",
        type=number_in(0, MOST_SECONDS),
        default=0.5,
        metavar="S",
        help="most seconds per point (default 0.5)",
    )


def run(args: argparse.Namespace) -> None:
    sweep = sweep_of(args)
    points = list(sweep.points())
    require_runnable(sweep, points)
    print(f"{len(points)} points on fabric {sweep.fabric}: {layout_of(args).arithmetic}, {_sizes(points)}")
    from mnnvl_lab.measure.run import run as run_sweep
    from mnnvl_lab.records import summary

    table = run_sweep(sweep, out=args.out, resume=args.resume, progress=not args.quiet)
    rounds = summary(table[table["phase"] == "round"])
    print(rounds[_columns(rounds)].to_string(index=False, float_format="{:.1f}".format))
    print(f"wrote {args.out}, every result checked; draw it: python -m mnnvl_lab plot {args.out} --out DIR")


def _columns(rounds) -> list[str]:
    """What tells the points apart, then their numbers; capacities only where they do not follow from the tokens."""
    apart = [name for name in ("token_counts", "ep_group", "replicas", "repeat") if rounds[name].nunique() > 1]
    sizes = [name for name in ("runtime_max_tokens", "max_tokens") if (rounds[name] != rounds["tokens"]).any()]
    sizes += [name for name in ("padding_rows", "padding_counts", "padding_id") if rounds["padding_rows"].any()]
    return ["mode", "clock", "format", "routing", "tokens", *apart, *sizes, "p50_us", "p90_us", "min_us", "n"]


def sweep_of(args: argparse.Namespace) -> Sweep:
    """The sweep that the words describe.

    Raises:
        Refused: a word is unknown, or breaks a limit of the kernels in some point.
    """
    from mnnvl_lab.measure import Sampling, Sweep
    from mnnvl_lab.routing import Padding

    sampling = Sampling(
        warmup=args.warmup, min_samples=min(10, args.samples), max_samples=args.samples, budget_s=args.budget
    )
    return Sweep(
        **shape_of(args),
        layouts=layout_of(args),
        modes=args.modes,
        tokens=args.tokens,
        max_tokens=args.max_tokens,
        runtime_max_tokens=args.runtime_max_tokens,
        padding=[Padding(rows=rows, expert_id=args.padding_id, invalid_ids=args.invalid_ids) for rows in args.padding],
        replicas=args.replicas,
        routings=args.routing,
        formats=args.format,
        clocks=args.clock,
        fabric=args.fabric,
        seed=args.seed,
        sampling=sampling,
    )


def require_runnable(sweep: Sweep, points: Sequence[Point]) -> None:
    """Refuse, before any process starts, a sweep that this machine does not carry.

    Raises:
        Refused: too few GPUs, too many processes, or more memory than there is.
    """
    from mnnvl_lab.hardware import count_visible_gpus
    from mnnvl_lab.ranks.gpu_placement import place

    for layout in sweep.layouts:
        place(layout, fabric=sweep.fabric, visible_gpus=count_visible_gpus())
    if sweep.fabric == "host":
        _require_host(sweep, points)
    baselines = [mode for mode in sweep.modes if mode not in ("one_sided", "two_sided", "pico")]
    if sweep.fabric == "shared_gpu" and baselines:
        raise Refused(f"{', '.join(baselines)} on fabric shared_gpu: NCCL takes one GPU per rank; leave them out")


def _require_host(sweep: Sweep, points: Sequence[Point]) -> None:
    """Processes and memory of this machine."""
    import psutil

    from mnnvl_lab.notebook import readable_bytes

    ranks = max(layout.world_size for layout in sweep.layouts)
    if ranks > MOST_HOST_RANKS:
        raise Refused(f"{ranks} ranks on fabric host: each is a process, at most {MOST_HOST_RANKS}; use fewer ranks")
    needed, memory = ranks * _most_bytes(points), psutil.virtual_memory().total
    if needed > memory:
        raise Refused(
            f"{ranks} workspaces of {readable_bytes(_most_bytes(points))} on fabric host: this machine has "
            f"{readable_bytes(memory)} of memory; use fewer tokens, a smaller --max-tokens or fewer ranks"
        )


def _most_bytes(points: Sequence[Point]) -> int:
    from mnnvl_lab.workspace import OneSidedWorkspace

    return max(OneSidedWorkspace.of(point.exchange).workspace_bytes for point in points)


def _sizes(points: Sequence[Point]) -> str:
    """What the largest one-sided workspace takes, said before it is taken."""
    from mnnvl_lab.notebook import readable_bytes

    return f"a one-sided workspace of up to {readable_bytes(_most_bytes(points))} per rank"
