"""Run a reproducer: exit status 0 where nothing is wrong, 1 where the fault shows, 2 where it could not run.

python -m tools.findings two_sided_prepare [--fixed]
python -m tools.findings changing_size
python -m tools.findings report             the pages of docs/findings/, from data/findings/
"""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = ("two_sided_prepare", "changing_size", "report")


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        print(f"{__doc__.strip()}\n\nchoose one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return import_module(f"tools.findings.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
