"""`python -m mnnvl_lab`: plan, predict, sweep, plot, report, export, doctor, compare."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from mnnvl_lab.cli import compare, doctor, export, plan, plot, predict, report, sweep
from mnnvl_lab.cli.arguments import Parser
from mnnvl_lab.errors import LabError, RecordError, Refused

COMMANDS = (plan, predict, sweep, plot, report, export, doctor, compare)
DEBUG = "MNNVL_LAB_DEBUG"
"""Set in the environment, an internal error shows its traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 1 if ranks or results failed, or a plan cannot run; 2 for bad input; 3 if a condition of `compare` is met;
        130 if interrupted. What went wrong is
        on stderr, in one line if the input was bad.
    """
    args = _parsed(argv)
    try:
        status = args.run(args) or 0
        sys.stdout.flush()
    except (Refused, RecordError) as error:
        return _say(error, 2)
    except LabError as error:
        return _say(error, 1)
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _say(error, 2)
    except KeyboardInterrupt:
        return _say("interrupted; a sweep goes on with --resume", 130)
    except Exception as error:
        return _say(_internal(error), 1)
    return status


def _parsed(argv: Sequence[str] | None):
    """The words as arguments; whatever is wrong with them exits with 2 and points to the command's own help."""
    parser = Parser(
        prog="python -m mnnvl_lab",
        description="A laboratory for expert parallelism over NVLink: plan, measure, draw, compare.",
        epilog="Each command has a --help with examples. Begin with: python -m mnnvl_lab doctor",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _internal(error: Exception) -> str:
    """A defect of this package, in one line that a report can quote."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    at = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split()) or "no message"
    where = f"{os.path.basename(at.filename)}:{at.lineno}"
    return f"internal error: {type(error).__name__}: {words} ({where}); report it with the traceback of {DEBUG}=1"


def _say(error: object, status: int) -> int:
    print(f"mnnvl_lab: {error}".replace("\n", " | ") if status == 2 else f"mnnvl_lab: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # paths may hold what the terminal's encoding has not
    sys.exit(main())
