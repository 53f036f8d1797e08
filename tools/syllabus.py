"""How long each notebook takes, and what must come before it: the tables of `docs/syllabus.md`.

python -m tools.syllabus                # reading minutes by the rule, and where a notebook says something else
python -m tools.syllabus --measure      # run every notebook afresh and keep its seconds in data/notebook_seconds.json

Reading time is estimated, not measured: words of prose at 150 per minute, which is slow on purpose, half a minute for
each code cell and what it shows, and a minute for each exercise, rounded to five minutes. Run time is measured.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mnnvl_lab.errors import choose
from mnnvl_lab.records.files import replacing
from tools.arguments import run_tool, tool_parser

if TYPE_CHECKING:
    import nbformat  # its schema takes over a second to load, which every tool that fills a page would wait for

ROOT = Path(__file__).resolve().parents[1]
PATHS = {path.stem[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
SECONDS = ROOT / "data" / "notebook_seconds.json"
WORDS_PER_MINUTE, CELL_MINUTES, EXERCISE_MINUTES, STEP_MINUTES = 150, 0.5, 1.0, 5
ASKED = re.compile(r'lab\.check\("')
TITLE = re.compile(r"# ([^\n]+)")
NEEDED = re.compile(r"\]\((\d\d)-[^)]+\.ipynb\)")


def minutes(notebook: nbformat.NotebookNode) -> int:
    """Estimated minutes to read and answer, by the rule of this module."""
    prose = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    exercises = sum(bool(ASKED.search(source)) for source in code)
    words = len(re.sub(r"[|*#`]", " ", prose).split())
    exact = words / WORDS_PER_MINUTE + EXERCISE_MINUTES * exercises + CELL_MINUTES * (len(code) - exercises)
    return STEP_MINUTES * round(exact / STEP_MINUTES)


def needed_before(notebook: nbformat.NotebookNode) -> list[str]:
    """Numbers of the notebooks that its paragraph `You need` links to after `You should know`."""
    paragraph = next(t for t in notebook.cells[0].source.split("\n\n") if t.startswith("**You need**"))
    return NEEDED.findall(paragraph.partition("You should know")[2])


def kept_seconds() -> dict[str, float]:
    """Measured run time by notebook; empty before the first measurement."""
    return json.loads(SECONDS.read_text())["seconds"] if SECONDS.exists() else {}


def syllabus_notebooks() -> str:
    """The table of all notebooks: minutes by the rule, seconds as measured, and what comes before."""
    import nbformat

    measured = kept_seconds()
    lines = ["| notebook | question | minutes | run, seconds | read before |", "|---|---|---|---|---|"]
    for number, path in PATHS.items():
        notebook = nbformat.read(path, as_version=4)
        seconds = f"{measured[number]:.0f}" if number in measured else "not measured"
        before = ", ".join(needed_before(notebook)) or "–"
        title = TITLE.match(notebook.cells[0].source)[1]
        lines.append(f"| [{number}](../notebooks/{path.name}) | {title} | {minutes(notebook)} | {seconds} | {before} |")
    return "\n".join(lines)


def measure(numbers: Sequence[str]) -> None:
    """Run notebooks once, each in a fresh kernel, and keep the seconds with what they were measured on."""
    from tools.notebook_runs import execute

    for number in numbers:
        with TemporaryDirectory() as workdir:
            began_s = time.perf_counter()
            execute(PATHS[number], Path(workdir))
        _keep(number, round(time.perf_counter() - began_s, 1))


def _keep(number: str, seconds: float) -> None:
    """Add one time to the file, with the load of the machine at that moment."""
    print(f"{number}: {seconds:.1f} s", flush=True)
    kept = json.loads(SECONDS.read_text()) if SECONDS.exists() else {"seconds": {}, "load_average": {}}
    kept["machine"] = {"processors": len(os.sched_getaffinity(0)), "fabric": "host"}
    kept["seconds"][number], kept["load_average"][number] = seconds, round(os.getloadavg()[0], 1)
    with replacing(SECONDS, text=True) as file:
        json.dump({name: dict(sorted(part.items())) for name, part in kept.items()}, file, indent=1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = tool_parser("tools.syllabus", __doc__)
    parser.add_argument(
        "--measure", nargs="*", metavar="NN", help="run these notebooks, or all, and keep their seconds"
    )
    asked = parser.parse_args(arguments).measure
    if asked is not None:
        measure([choose(number, PATHS, "notebook") for number in asked] or list(PATHS))
    print(syllabus_notebooks())


if __name__ == "__main__":
    sys.exit(run_tool(main))
