"""`python -m mnnvl_lab`: plan, sweep, plot, doctor, compare."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mnnvl_lab.cli import compare, doctor, plan, plot, sweep
from mnnvl_lab.cli.words import Parser
from mnnvl_lab.errors import LabError, RecordError, Refused

COMMANDS = (plan, sweep, plot, doctor, compare)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 1 if ranks or results failed, or a plan cannot run; 2 for bad input; 130 if interrupted. What went wrong is
        one line on stderr.
    """
    parser = Parser(
        prog="python -m mnnvl_lab",
        description="A laboratory for expert parallelism over NVLink: plan, measure, draw, compare.",
        epilog="Each command has a --help with examples. Begin with: python -m mnnvl_lab doctor",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except (Refused, RecordError) as error:
        return _say(error, 2)
    except LabError as error:
        return _say(error, 1)
    except OSError as error:
        return _say(error, 2)
    except KeyboardInterrupt:
        return _say("interrupted; a sweep goes on with --resume", 130)


def _say(error: object, status: int) -> int:
    print(f"mnnvl_lab: {error}".replace("\n", " | ") if status == 2 else f"mnnvl_lab: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
