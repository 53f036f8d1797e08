"""Arguments that several commands share, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

from mnnvl_lab.errors import MOST_COUNT, Refused, require_count, shown

EPILOG_OF_LAYOUT = """what the words mean:
  rank    one process with one GPU
  TP      tensor parallelism: ranks that share the work on the same tokens
  DP      data parallelism: ranks with tokens of their own
  PCP     prefill context parallelism: ranks that share long prompts
  PP      pipeline parallelism: ranks that hold different layers
  EP      expert parallelism: DP x PCP x TP ranks, among which the experts of a layer are dealt out;
          dispatch sends each token to the ranks of its experts, combine adds up what comes back
"""
FORMATS = "bf16, fp16, fp32, fp8, fp8_block, mxfp8, nvfp4, mxfp4"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line on stderr and exits with 2."""

    def error(self, message: str):
        line = " | ".join(f"{self.prog}: {message}; see {self.prog} --help".splitlines())
        print(line, file=sys.stderr)
        raise SystemExit(2)


def add_command(commands, name: str, *, help: str, description: str, examples: str, words: str = "") -> Parser:
    """A subcommand whose help shows examples and explains its words."""
    lines = "".join(f"  python -m mnnvl_lab {line}\n" for line in examples.strip().splitlines())
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"examples:\n{lines}" + (f"\n{words}" if words else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser)
    return parser


def add_layout(parser: Parser) -> None:
    """`--tp`, `--dp`, `--pcp`, `--pp`, `--gpus-per-node`."""
    group = parser.add_argument_group("layout")
    group.add_argument("--tp", type=whole, default=1, metavar="N", help="tensor-parallel ranks (default 1)")
    group.add_argument("--dp", type=whole, default=1, metavar="N", help="data-parallel ranks (default 1)")
    group.add_argument("--pcp", type=whole, default=1, metavar="N", help="prefill-context-parallel ranks (default 1)")
    group.add_argument("--pp", type=whole, default=1, metavar="N", help="pipeline stages (default 1)")
    group.add_argument(
        "--gpus-per-node", type=whole, default=8, metavar="N", help="ranks that share a node (default 8)"
    )


def add_shape(parser: Parser) -> None:
    """`--model`, or else `--hidden`, `--experts`, `--top-k`."""
    group = parser.add_argument_group("MoE shape: a named model, or three numbers")
    group.add_argument("--model", metavar="NAME", help="such as deepseek-v3; a wrong name lists the known ones")
    group.add_argument("--hidden", type=whole, metavar="H", help="numbers in a token's row")
    group.add_argument("--experts", type=whole, metavar="E", help="experts of a layer")
    group.add_argument("--top-k", type=whole, metavar="K", help="experts that each token chooses")


def add_figures(parser: Parser, *, required: bool) -> None:
    """`--out` and `--type` of commands that draw."""
    parser.add_argument("--out", required=required, metavar="DIR", type=path_name, help="directory of the figures")
    parser.add_argument("--type", default="png", choices=("png", "svg", "pdf"), help="kind of file (default png)")


def layout_of(args: argparse.Namespace):
    from mnnvl_lab.layout import Layout

    return Layout(tp=args.tp, dp=args.dp, pcp=args.pcp, pp=args.pp, gpus_per_node=args.gpus_per_node)


def shape_of(args: argparse.Namespace) -> dict[str, int]:
    """`hidden`, `experts` and `top_k`, from the named model or as given.

    Raises:
        Refused: neither is complete, or both are given.
    """
    from mnnvl_lab.model import require_model

    given = {"hidden": args.hidden, "experts": args.experts, "top_k": args.top_k}
    if args.model is None:
        missing = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is None]
        if missing:
            raise Refused(
                f"{', '.join(missing)} not given: a shape takes all three; add what is missing, or pass --model"
            )
        return {name: require_count(name, value) for name, value in given.items()}
    if any(value is not None for value in given.values()):
        raise Refused("--model and numbers given: a named model has its own shape; pass one or the other")
    model = require_model(args.model)
    return {name: getattr(model, name) for name in given}


def whole(text: str) -> int:
    """A whole number of an argument; its range is the library's to judge."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number: pass digits, such as 8") from None


def whole_in(least: int, most: int) -> Callable[[str], int]:
    """A whole number in `[least, most]`, for what no library function judges."""

    def convert(text: str) -> int:
        if not least <= (number := whole(text)) <= most:
            raise argparse.ArgumentTypeError(f"{shown(number)} is out of range: it must lie in [{least}, {most}]")
        return number

    return convert


def number_in(least: float, most: float) -> Callable[[str], float]:
    """A finite number in `[least, most]`."""

    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"{shown(text)} is no number in [{least:g}, {most:g}]: pass one, such as 0.01"
            )
        return number

    return convert


def token_counts(text: str) -> int | tuple[int, ...]:
    """`128` for every rank, or `1,4,0,128`: one count per rank of the EP group."""
    count = whole_in(0, MOST_COUNT)
    counts = tuple(count(part) for part in text.split(","))
    return counts if len(counts) > 1 else counts[0]


def path_name(text: str) -> str:
    """A path that can be written to; the empty one is a forgotten value."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{shown(text)} names no path: pass one, such as out")
    return text
