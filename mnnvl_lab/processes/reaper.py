"""Reaper: a separate process that kills the ranks and removes their files if the notebook's process dies.

It needs the standard library and psutil alone, so that it starts within 0.1 s. It reads one JSON object per line from
its standard input:

    {"directory": {"parent": ..., "name": ..., "token": ...}}
    {"process": {"pid": ..., "started": ...}}
    {"marked": {"name": ..., "value": ...}}      processes with this environment variable
    {"cancel": [...]}                            a command that gives a batch system's job back
    {"done": true}

When the input ends, or its parent process is gone, it kills those processes with their children and removes those
directories, unless `done` was read. Whatever is not provably this package's own is refused and left alone.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterable, Iterator

from mnnvl_lab.processes.ownership import OwnedDirectory, end, end_marked, process_of

CANCEL_LIMIT_S = 30.0
PARENT_POLL_S = 1.0  # a forked child of the parent may keep the pipe open, so the parent itself is watched too


def clean_up(lines: Iterable[str]) -> list[str]:
    """Do what the lines say, unless one says that all is done.

    Returns:
        What was refused, and why.
    """
    processes, marks, directories, commands, refused = [], [], [], [], []
    for line in lines:
        try:
            [(kind, what)] = json.loads(line).items()
            if kind == "done":
                return refused
            if kind == "process":
                processes.append(process_of(int(what["pid"]), float(what["started"])))
            elif kind == "marked":
                marks.append((str(what["name"]), str(what["value"])))
            elif kind == "cancel":
                commands.append([str(word) for word in what])
            else:
                directories.append(OwnedDirectory(**what))
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # cut off, or not from this package
            refused.append(f"{line!r}: {error}")
    end(filter(None, processes))
    for name, value in marks:
        end_marked(name, value)
    refused += filter(None, map(_cancelled, commands))
    return refused + [f"{d.path}: {reason}" for d in directories if (reason := d.remove())]


def _cancelled(command: list[str]) -> str:
    """Run it; says why it failed, or nothing."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CANCEL_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"what {command} gives back: {error}"
    return f"what {command} gives back: {done.stderr.decode(errors='replace')}" if done.returncode else ""


def lines_from(parent: int) -> Iterator[str]:
    """Lines of the standard input, until it ends or the parent process is gone."""
    rest = b""
    while True:
        if not select.select([0], [], [], PARENT_POLL_S)[0]:
            if os.getppid() != parent:
                return
            continue
        news = os.read(0, 65536)
        if not news:
            return
        *lines, rest = (rest + news).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)


def main() -> None:
    for refusal in clean_up(lines_from(int(sys.argv[1]))):
        print(f"mnnvl_lab's reaper left alone {refusal}", file=sys.stderr)


if __name__ == "__main__":
    main()
