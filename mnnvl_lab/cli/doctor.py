"""`doctor`: what this machine can run and what it cannot, and why."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from mnnvl_lab.cli.arguments import add_command

LAUNCHERS = ("slurm",)
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
doctor --json
doctor --explain "cuMemCreate: operation not permitted"
doctor --launcher slurm""",
        words=WORDS,
    )
    parser.add_argument("--json", action="store_true", help="print facts and verdicts as JSON")
    parser.add_argument("--launcher", choices=LAUNCHERS, help="check a cluster instead; submits no job")
    parser.add_argument("--explain", metavar="TEXT", help="cause and remedy of an error's text; looks at nothing else")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 1 if a cluster was checked and ranks would not start there, or if an error is not known."""
    from mnnvl_lab import doctor

    if args.explain is not None:
        return _explain(args.explain, as_json=args.json)
    if args.launcher:
        return _check_cluster(as_json=args.json)
    report = doctor.check_machine()
    print(json.dumps(report.to_dict(), indent=2) if args.json else report)
    return 0


def _check_cluster(*, as_json: bool) -> int:
    from mnnvl_lab.ranks.slurm_check import check_slurm

    findings = check_slurm()
    print(json.dumps(list(map(asdict, findings)), indent=2) if as_json else "\n".join(["Slurm", *map(str, findings)]))
    return 0 if all(finding.passed for finding in findings) else 1


def _explain(text: str, *, as_json: bool) -> int:
    from mnnvl_lab.doctor import KNOWN_ERRORS, explain

    found = explain(text)
    if as_json:
        print(json.dumps(list(map(asdict, found)), indent=2))
    else:
        unknown = ["Not among the known errors:", *(f"  {error.said}" for error in KNOWN_ERRORS)]
        print("\n\n".join(map(str, found)) or "\n".join(unknown))
    return 0 if found else 1
