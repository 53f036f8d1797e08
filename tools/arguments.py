"""What the tools' command lines share: a parser that shows a tool's own page, types of arguments, and error exits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mnnvl_lab.cli.arguments import Parser, number_in, path_name, whole_in
from mnnvl_lab.errors import LabError

FABRICS = ("host", "nvlink", "shared_gpu")
MOST_RANKS = 256
SHARE = number_in(0.0001, 100)
"""Type of `--share`: of a full campaign."""


def tool_parser(module: str, page: str) -> Parser:
    """A parser whose help is the tool's docstring: its first line, then examples and what else it says.

    Args:
        module: how the tool is called, such as `tools.evaluate`.
        page: the module's docstring.
    """
    first, _, rest = page.strip().partition("\n")
    return Parser(
        prog=f"python -m {module}",
        description=first,
        epilog=rest.strip("\n") or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_fabric(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """`--fabric` and `--ranks` of tools that start rank processes; defaults suit a machine without a GPU."""
    shown = "" if required else " (default %(default)s)"
    parser.add_argument(
        "--fabric", required=required, default="host", choices=FABRICS, help=f"what carries the bytes{shown}"
    )
    parser.add_argument(
        "--ranks",
        required=required,
        type=whole_in(1, MOST_RANKS),
        default=4,
        metavar="N",
        help=f"ranks of the EP group{shown}",
    )


def file_path(text: str) -> Path:
    """A path as an argument; the empty one is refused."""
    return Path(path_name(text))


def run_tool(main: Callable[[Sequence[str] | None], int | None], arguments: Sequence[str] | None = None) -> int:
    """Exit status of a tool: what the package or the system refuses is one line on stderr and status 1."""
    try:
        return main(arguments) or 0
    except (LabError, OSError) as error:
        print(f"tools.{Path(main.__code__.co_filename).stem}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
