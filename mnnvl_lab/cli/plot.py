"""`plot`: every figure of the points in one record file or more."""

from __future__ import annotations

import argparse

from mnnvl_lab.cli.arguments import add_command, add_figures, path_name

WORDS = """figures, each named after what tells it from the others:
  latency     by tokens, one line per mode, with the bound that the bytes give
  memory      of the workspace, by tokens and by EP size
  workspace   its regions to scale
  traffic     rows from rank to rank
  ranks       who sits where
"""


def add(commands) -> None:
    parser = add_command(
        commands,
        "plot",
        help="draw record files",
        description="Draws what a sweep has measured, and what its layout and load mean.",
        examples="""plot out/host.parquet --out out/figures
plot before.parquet more.parquet --out out/figures --type svg""",
        words=WORDS,
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", type=path_name, help="record files of one fabric, device and clock"
    )
    add_figures(parser, required=True)
    parser.add_argument(
        "--gpu", default="h100", help="whose multiprocessors size the two-sided workspace (default h100)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from mnnvl_lab import records
    from mnnvl_lab.cli.figures import figures, save_all
    from mnnvl_lab.hardware import require_gpu
    from mnnvl_lab.plots.selection import load

    gpu = require_gpu(args.gpu)
    table = records.join([load(file) for file in args.files])
    save_all(figures(table, gpu=gpu), args.out, args.type)
