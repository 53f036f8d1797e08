"""`sweep`: measure a layout over modes, tokens, routings and formats; every result checked."""

from __future__ import annotations

import argparse

from mnnvl_lab.cli.words import EPILOG_OF_LAYOUT, add_command, add_layout, add_shape, layout_of, shape_of, whole

WORDS = f"""{EPILOG_OF_LAYOUT}
  mode     one_sided, two_sided, or a baseline: allgather_reducescatter, all_to_all
  fabric   what carries the bytes: host (processes and shared memory, runs anywhere), nvlink (a GPU a rank),
           shared_gpu (several ranks a GPU under MPS; no baselines there)
  routing  how tokens choose experts: uniform, balanced, zipf:1.2, lognormal:1, hot_expert:0.5, hot_rank:0.5
  clock    eager: one operation after a barrier; graph: rounds back to back; kernel: device span. They never mix;
           graph and kernel need a GPU
  point    one of each; measured, then kept: a sweep that is killed loses at most the point in progress
"""


def add(commands) -> None:
    parser = add_command(
        commands,
        "sweep",
        help="measure latencies, every result checked, into a record file",
        description="Starts a process a rank, opens each mode, checks dispatch and combine against the oracle, times "
        "them,\nchecks again, and keeps every rank's samples.",
        examples="""sweep --tp 2 --dp 2 --hidden 1024 --experts 32 --top-k 4 --tokens 1 16 128 --out out/host.parquet
sweep --dp 8 --model deepseek-v3 --modes one_sided two_sided --fabric nvlink --clock graph --out out/h100.parquet
sweep --tp 2 --dp 2 --hidden 1024 --experts 32 --top-k 4 --tokens 1 16 128 --out out/host.parquet --resume""",
        words=WORDS,
    )
    add_layout(parser)
    add_shape(parser)
    _add_axes(parser)
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--samples", type=whole, default=200, metavar="N", help="most iterations a point (default 200)"
    )
    sampling.add_argument("--warmup", type=whole, default=3, metavar="N", help="rounds before the first (default 3)")
    sampling.add_argument("--budget", type=float, default=0.5, metavar="S", help="most seconds a point (default 0.5)")
    parser.add_argument("--out", required=True, metavar="FILE", help="record file to write, Parquet")
    parser.add_argument("--resume", action="store_true", help="go on with FILE where an earlier run ended")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def _add_axes(parser) -> None:
    axes = parser.add_argument_group("axes: every combination is a point")
    axes.add_argument("--modes", nargs="+", default=["one_sided", "two_sided"], metavar="MODE", help="see below")
    axes.add_argument("--tokens", nargs="+", type=whole, default=[1, 16, 128], metavar="T", help="tokens a rank")
    axes.add_argument(
        "--routing", nargs="+", default=["uniform"], metavar="ROUTING", help="see below (default uniform)"
    )
    axes.add_argument(
        "--format", nargs="+", default=["bf16"], metavar="FORMAT", help="bf16, fp16, fp32, fp8_block, ..."
    )
    axes.add_argument("--clock", nargs="+", default=["eager"], metavar="CLOCK", help="see below (default eager)")
    parser.add_argument("--fabric", default="host", help="host, shared_gpu or nvlink (default host)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of routing and payloads (default 0)")


def run(args: argparse.Namespace) -> None:
    from mnnvl_lab.transport.checks import check_exchange

    sweep = sweep_of(args)
    points = list(sweep.points())
    for point in points:  # the ranks check again; here it costs no start
        check_exchange(point.exchange)
    print(f"{len(points)} points on fabric {sweep.fabric}: {layout_of(args).arithmetic}, {_sizes(points)}")
    from mnnvl_lab.records import summary
    from mnnvl_lab.sweep import run as run_sweep

    table = run_sweep(sweep, out=args.out, resume=args.resume, progress=not args.quiet)
    columns = ["mode", "clock", "format", "routing", "tokens", "p50_us", "p90_us", "min_us", "n"]
    rounds = summary(table[table["phase"] == "round"])[columns]
    print(rounds.to_string(index=False, float_format="{:.1f}".format))
    print(f"wrote {args.out}, every result checked; draw it: python -m mnnvl_lab plot {args.out} --out DIR")


def sweep_of(args: argparse.Namespace):
    """The sweep that the words describe.

    Raises:
        Refused: a word is unknown, or breaks a limit of the kernels in some point.
    """
    from mnnvl_lab.measure import Sampling, Sweep
    from mnnvl_lab.model import require_format
    from mnnvl_lab.routing import parse

    for name in args.format:
        require_format(name)
    return Sweep(
        **shape_of(args),
        layouts=(layout_of(args),),
        modes=tuple(args.modes),
        tokens=tuple(args.tokens),
        routings=tuple(map(parse, args.routing)),
        formats=tuple(args.format),
        clocks=tuple(args.clock),
        fabric=args.fabric,
        seed=args.seed,
        sampling=Sampling(
            warmup=args.warmup, min_samples=min(10, args.samples), max_samples=args.samples, budget_s=args.budget
        ),
    )


def _sizes(points) -> str:
    """What the largest one-sided workspace takes, said before it is taken."""
    from mnnvl_lab.workspace import OneSidedWorkspace

    most = max(OneSidedWorkspace.of(point.exchange).workspace_bytes for point in points)
    return f"a one-sided workspace of up to {most / 1024**2:.1f} MiB a rank"
