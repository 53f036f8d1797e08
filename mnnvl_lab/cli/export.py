"""`export`: a record in the schema of another project."""

from __future__ import annotations

import argparse

from mnnvl_lab.cli.arguments import add_command, path_name

WORDS = """schemas:
  aiconfigurator   its Parquet table trtllm_alltoall_perf: medians of kernels, so a record of the kernel clock
  collectivex      its case-attempt JSON, a file a case: percentiles of the slowest rank, so a record of the eager clock
"""


def add(commands) -> None:
    parser = add_command(
        commands,
        "export",
        help="write a record in another project's schema",
        description="Writes what a sweep has measured so that it can be handed to aiconfigurator or CollectiveX.",
        examples="""export sweep.parquet --to collectivex --out out/cases
export kernels.parquet --to aiconfigurator --out out/trtllm_alltoall_perf.parquet""",
        words=WORDS,
    )
    parser.add_argument("file", metavar="FILE", type=path_name, help="record file")
    parser.add_argument("--to", required=True, metavar="SCHEMA", help="aiconfigurator or collectivex")
    parser.add_argument("--out", required=True, metavar="PATH", type=path_name, help="file, or folder of the cases")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from mnnvl_lab.plots.selection import load
    from mnnvl_lab.records.export import export

    print(*export(load(args.file), args.out, format=args.to), sep="\n")
