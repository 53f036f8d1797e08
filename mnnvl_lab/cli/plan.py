"""`plan`: the layout and the memory that its workspaces take, before any is taken."""

from __future__ import annotations

import argparse
import json
import sys

from mnnvl_lab.cli.arguments import (
    EPILOG_OF_LAYOUT,
    FORMATS,
    add_command,
    add_layout,
    add_shape,
    layout_of,
    shape_of,
    whole,
)
from mnnvl_lab.cli.engine import add_engine, take_engine

DEFAULT_TOKENS = 2048
WORDS = f"""{EPILOG_OF_LAYOUT}
  one_sided   each rank puts its rows straight into the others' workspaces: they hold one row per token and rank
  two_sided   sender and receiver meet in FIFOs: their size depends on the GPU and the ranks, not on tokens
  asked       bytes that the kernels ask for; allocated: memory that is gone, in steps of 2 MiB
  exit status 0; 1 if a mode cannot serve the layout or does not fit the GPU's memory (--modes chooses which modes
              count); 2 for bad input
  mapped      addresses with memory behind them, all ranks' as one rank sees them; reserved: addresses set aside
"""


def add(commands) -> None:
    parser = add_command(
        commands,
        "plan",
        help="the rank grid and the memory of each mode",
        description="Shows who sits where in a layout, and what expert parallelism takes of each GPU's memory.",
        examples="""plan --tp 2 --dp 4 --model deepseek-v3 --max-tokens 2048
plan --dp 8 --hidden 7168 --experts 256 --top-k 8 --format nvfp4 --gpu b200
plan --dp 8 --model deepseek-v3 --max-tokens 8192 --modes one_sided --wide
plan --tp 2 --dp 4 --model deepseek-v3 --json
plan --engine vllm --model deepseek-v3 -- -tp 2 -dp 4 --enable-expert-parallel""",
        words=WORDS,
    )
    add_layout(parser)
    add_shape(parser)
    parser.add_argument("--format", default="bf16", metavar="FORMAT", help=f"of dispatch: {FORMATS} (default bf16)")
    parser.add_argument(
        "--max-tokens", type=whole, metavar="T", help="most tokens of a batch (default 2048, or the engine's own)"
    )
    parser.add_argument("--gpu", default="h100", help="whose multiprocessors and memory count (default h100)")
    parser.add_argument("--sp-moe", action="store_true", help="sequence-parallel MoE: each TP rank sends its share")
    parser.add_argument(
        "--modes", nargs="+", metavar="MODE", help="whose problems count: one_sided, two_sided (default both)"
    )
    parser.add_argument("--wide", action="store_true", help="show each size in bytes too")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_engine(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from mnnvl_lab.errors import choose
    from mnnvl_lab.planner import plan

    setup = take_engine(args)
    default_tokens = setup.capacity if setup else DEFAULT_TOKENS
    layout = layout_of(args)
    named = {"model": args.model} if args.model and not _numbers(args) else shape_of(args)
    made = plan(
        layout,
        **named,
        format=args.format,
        max_tokens=default_tokens if args.max_tokens is None else args.max_tokens,
        gpu=args.gpu,
        sequence_parallel=args.sp_moe,
    )
    known = {mode.mode: mode for mode in made.modes}
    counted = [mode for mode in known if setup is None or mode == setup.mode]
    asked = dict.fromkeys(choose(name, known, "mode") for name in args.modes or counted)
    print(_printed(args, layout, made, setup))
    reasons = [reason for name in asked for reason in made.reasons_against(known[name])]
    if reasons:  # in full, with the remedies, they stand in the plan
        print(f"mnnvl_lab: {' | '.join(reason.partition('; ')[0] for reason in reasons)}", file=sys.stderr)
    return 1 if reasons else 0


def _printed(args: argparse.Namespace, layout, made, setup) -> str:
    """The plan, with what the engine makes of its flags and who serves it where an engine was named."""
    if setup is None:
        return json.dumps(made.to_dict(), indent=2) if args.json else f"{layout}\n\n{made.text(wide=args.wide)}"
    from mnnvl_lab.serving import about, who_serves

    served = who_serves(made)
    if args.json:
        return json.dumps(made.to_dict() | {"engine": setup.to_dict(), "who_serves": served.to_dict()}, indent=2)
    return "\n\n".join([str(setup), str(layout), made.text(wide=args.wide), str(served), about(setup)])


def _numbers(args: argparse.Namespace) -> bool:
    return any(value is not None for value in (args.hidden, args.experts, args.top_k))
