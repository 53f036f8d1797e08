"""`doctor`: what this machine can run and what it cannot, and why."""

from __future__ import annotations

import argparse
import json

from mnnvl_lab.cli.arguments import add_command

WORDS = """fabrics:
  host         one process per rank, bytes through shared memory: needs no GPU
  shared_gpu   several ranks per GPU, under NVIDIA's Multi-Process Service (MPS)
  nvlink       one GPU per rank, bytes over NVLink
"""


def add(commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        help="what this machine can run, and why not",
        description="Looks at this machine and says of each fabric whether it can be used, or why not. Starts nothing.",
        examples="""doctor
doctor --json""",
        words=WORDS,
    )
    parser.add_argument("--json", action="store_true", help="print facts and verdicts as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from mnnvl_lab import doctor

    report = doctor.check_machine()
    print(json.dumps(report.to_dict(), indent=2) if args.json else report)
