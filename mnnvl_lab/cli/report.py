"""`report`: record files as a page, with figures and tables for a paper."""

from __future__ import annotations

import argparse
import sys

from mnnvl_lab.cli.arguments import add_command, path_name

WORDS = """writes into DIR:
  write-up.html    one page that asks for nothing: question, machine, method, results, what the data cannot say
  write-up.pdf     the same, printed by Chromium if there is one (MNNVL_LAB_CHROMIUM names another browser)
  write-up.ipynb   the notebook that made it, executed
  numbers.json     every number of the page, for programs
  figures/         every figure as SVG and PDF, text as text

Sections appear when their data do. Two files or more are compared, point by point.
Prose and order are the template's: copy notebooks/template-write-up.ipynb, change it, and pass it with --template.
"""


def add(commands) -> None:
    parser = add_command(
        commands,
        "report",
        help="write a page from record files",
        description="Makes one self-contained page of what a sweep has measured, and compares several.",
        examples="""report out/host.parquet --out out/write-up
report before.parquet after.parquet --out out/compared --question "Is the new version faster?"
report sweep.parquet memory.parquet links.parquet --out out/write-up --force""",
        words=WORDS,
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", type=path_name, help="record files; memory ledgers and link rates with them"
    )
    parser.add_argument("--out", required=True, metavar="DIR", type=path_name, help="folder to make")
    parser.add_argument("--question", default="", metavar="TEXT", help="what the page asks (default: the template's)")
    parser.add_argument("--template", metavar="FILE", type=path_name, help="a notebook of your own")
    parser.add_argument("--force", action="store_true", help="write into DIR though it is not empty")
    parser.add_argument("--no-pdf", action="store_true", help="no PDF, even if Chromium is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from mnnvl_lab.reports import report

    made = report(
        args.files,
        out=args.out,
        question=args.question,
        force=args.force,
        pdf=not args.no_pdf,
        template=args.template,
    )
    print(*made.files, sep="\n")
    if made.note and not args.no_pdf:
        print(f"no PDF: {made.note}", file=sys.stderr)
