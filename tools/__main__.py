"""List the tools, each with the first line of its page; every one has a --help.

python -m tools
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.arguments import run_tool, tool_parser


def tools() -> Iterator[tuple[str, str]]:
    """Name and first line of every module here that is a command."""
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            yield path.stem, (ast.get_docstring(tree) or "").partition("\n")[0]


def main(arguments: Sequence[str] | None = None) -> None:
    tool_parser("tools", __doc__).parse_args(arguments)
    for name, line in tools():
        print(f"python -m tools.{name:<15} {line}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
