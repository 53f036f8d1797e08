"""`predict`: the latency of a layout that was not measured, with its interval and lower bound."""

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

WORDS = f"""{EPILOG_OF_LAYOUT}
  prediction    the latency model's, never a measurement; 95 % of such rounds lie in [low_us, high_us]
  bound_us      least time that the bytes take over the fullest link, at its rate on paper
  dominated_by  what takes most of a round: launches and flags, link, packets, or memory
  basis         where the numbers come from, and what in them is extrapolated
  GPUs          h100, h200 and gb200 have a fitted model; all others have bounds alone
  exit status   0; 1 if a mode cannot serve the layout (--modes chooses which modes count); 2 for bad input
"""


def add(commands) -> None:
    parser = add_command(
        commands,
        "predict",
        help="the latency of a layout before anything runs, also on other GPUs",
        description="Predicts dispatch, combine and the whole round, with a 95 % interval and a lower bound.",
        examples="""predict --dp 8 --model deepseek-v3 --tokens 128
predict --tp 2 --dp 16 --gpus-per-node 4 --model deepseek-v3 --gpu gb200 --format nvfp4 --tokens 1 64 1024
predict --dp 8 --model qwen3-235b-a22b --routing zipf:1.2 --modes one_sided --json""",
        words=WORDS,
    )
    add_layout(parser)
    add_shape(parser)
    parser.add_argument("--format", default="bf16", metavar="FORMAT", help=f"of dispatch: {FORMATS} (default bf16)")
    parser.add_argument(
        "--tokens", nargs="+", type=whole, default=[128], metavar="T", help="tokens per rank (default 128)"
    )
    parser.add_argument("--routing", default="uniform", help="such as uniform, zipf:1.2, balanced (default uniform)")
    parser.add_argument("--gpu", default="h100", help="whose model counts (default h100)")
    parser.add_argument("--modes", nargs="+", metavar="MODE", help="modes to predict (default all that the GPU has)")
    parser.add_argument("--seed", type=whole, default=0, help="of the routing (default 0)")
    parser.add_argument("--json", action="store_true", help="print the prediction as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from mnnvl_lab.prediction import predict

    numbers = any(value is not None for value in (args.hidden, args.experts, args.top_k))
    named = {"model": args.model} if args.model and not numbers else shape_of(args)
    made = predict(
        layout_of(args),
        **named,
        tokens=args.tokens,
        mode=args.modes,
        gpu=args.gpu,
        format=args.format,
        routing=args.routing,
        seed=args.seed,
    )
    print(json.dumps(made.to_dict(), indent=2) if args.json else made)
    if made.refusals:  # in full, with the remedies, they are in the output
        reasons = (reason.partition("; ")[0] for reason in made.refusals)
        print(f"mnnvl_lab: {' | '.join(reasons)}", file=sys.stderr)
    return 1 if made.refusals else 0
