"""`plot`: every figure of the points in one record file or more."""

from __future__ import annotations

import argparse
from pathlib import Path

from mnnvl_lab.cli.words import add_command

WORDS = """figures, each named after what tells it from the others:
  latency     by tokens, a line a mode, with the bound that the bytes give
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
    parser.add_argument("files", nargs="+", metavar="FILE", help="record files of one fabric, device and clock")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="directory of the figures")
    parser.add_argument("--type", default="png", choices=("png", "svg", "pdf"), help="kind of file (default png)")
    parser.add_argument(
        "--gpu", default="h100", help="whose multiprocessors size the two-sided workspace (default h100)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from mnnvl_lab import records
    from mnnvl_lab.cli.figures import figures, save_all
    from mnnvl_lab.hardware import require_gpu

    gpu = require_gpu(args.gpu)
    table = records.join([records.load(file) for file in args.files])
    save_all(figures(table, gpu=gpu), args.out, args.type)
