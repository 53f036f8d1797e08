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
    number_in,
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
  --weights   adds what a server holds beside the workspaces: weights, and what is left for the KV cache
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
plan --dp 8 --model deepseek-v3 --gpu h200 --format nvfp4 --weights fp8 --heads bf16
plan --dp 16 --gpus-per-node 4 --gpu gb200 --model deepseek-v3 --flashinfer main --cft
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
    _add_server(parser)
    parser.add_argument("--wide", action="store_true", help="show each size in bytes too")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_engine(parser)
    parser.set_defaults(run=run)


def _add_server(parser) -> None:
    """Options of the layout of the one-sided workspace, and of the memory of a server."""
    parser.add_argument("--flashinfer", default="0.7.2", metavar="NAME", help="whose layout: 0.7.2 (default), or main")
    parser.add_argument("--cft", action="store_true", help="with room for counted writes (--flashinfer main)")
    group = parser.add_argument_group("memory of a server, with --weights")
    group.add_argument("--weights", metavar="DTYPE", help="of the routed experts: bf16, fp8, fp4, mxfp4")
    group.add_argument("--rules", metavar="ENGINE", help="whose workspaces: vllm (default), sglang")
    group.add_argument("--heads", nargs="+", default=(), metavar="FORMAT", help="further layers, such as bf16:2048")
    group.add_argument(
        "--namespaces", nargs="+", metavar="NAME", help="of SGLang: decode (default), speculative, sp_prefill"
    )
    group.add_argument("--redundant", type=whole, default=0, metavar="N", help="replicas of experts per layer (EPLB)")
    group.add_argument("--other-gib", type=number_in(0, 2**30), metavar="GIB", help="other weights per rank, if known")
    group.add_argument("--kv-tokens", type=whole, default=0, metavar="N", help="tokens of KV cache that must fit")
    group.add_argument(
        "--utilization",
        type=number_in(0.01, 1),
        default=0.92,
        metavar="U",
        help="share of memory (default 0.92)",
    )


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
        flashinfer=args.flashinfer,
        cft=args.cft,
    )
    known = {mode.mode: mode for mode in made.modes}
    counted = [mode for mode in known if setup is None or mode == setup.mode]
    asked = dict.fromkeys(choose(name, known, "mode") for name in args.modes or counted)
    held = [_deployment(args, made, name, setup) for name in asked] if args.weights else []
    print(_printed(args, layout, made, setup, held))
    against = [one.reasons_against for one in held] or [made.reasons_against(known[name]) for name in asked]
    reasons = [reason for group in against for reason in group]
    if reasons:  # in full, with the remedies, they stand in the plan
        print(f"mnnvl_lab: {' | '.join(reason.partition('; ')[0] for reason in reasons)}", file=sys.stderr)
    return 1 if reasons else 0


def _deployment(args: argparse.Namespace, made, mode: str, setup):
    from mnnvl_lab.errors import Refused
    from mnnvl_lab.planner.live import ENGINES

    rules = args.rules or (setup.engine.lower() if setup else ENGINES[0])
    if rules not in ENGINES and not args.rules:
        raise Refused(
            f"--weights with {setup.engine}: its rules on workspaces are not known; pass --rules {' or '.join(ENGINES)}"
        )
    return made.deployment(
        mode=mode,
        engine=rules,
        heads=args.heads,
        namespaces=args.namespaces or ("decode",),
        weights=args.weights,
        redundant=args.redundant,
        other_weights_bytes=None if args.other_gib is None else int(args.other_gib * 2**30),
        utilization=args.utilization,
        least_kv_tokens=args.kv_tokens,
    )


def _printed(args: argparse.Namespace, layout, made, setup, held) -> str:
    """The plan, with what the engine makes of its flags and who serves it where an engine was named."""
    servers = {"deployment": [one.to_dict() for one in held]} if held else {}
    if setup is None and args.json:
        return json.dumps(made.to_dict() | servers, indent=2)
    if setup is None:
        return "\n\n".join([str(layout), made.text(wide=args.wide), *map(str, held)])
    from mnnvl_lab.serving import about, who_serves

    served = who_serves(made)
    if args.json:
        found = {"engine": setup.to_dict(), "who_serves": served.to_dict()}
        return json.dumps(made.to_dict() | servers | found, indent=2)
    return "\n\n".join([str(setup), str(layout), made.text(wide=args.wide), *map(str, held), str(served), about(setup)])


def _numbers(args: argparse.Namespace) -> bool:
    return any(value is not None for value in (args.hidden, args.experts, args.top_k))
