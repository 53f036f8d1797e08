"""Run notebooks from a fresh kernel, as a reader would; renew or check the outputs that are kept in their files.

python -m tools.notebooks run notebooks/00-quickstart.ipynb --out out              # copy, figures, records
python -m tools.notebooks run notebooks/*.ipynb --fabric shared_gpu                # the same cells on GPUs
python -m tools.notebooks refresh notebooks/[0-9]*.ipynb                           # run, scrub, write back
python -m tools.notebooks check notebooks/[0-9]*.ipynb                             # fresh run against kept outputs
python -m tools.notebooks student --out class                                      # without outputs and answers
python -m tools.notebooks solutions --out answers                                  # answers filled in, executed
python -m tools.notebooks keep --ran-on "two H100s" out/02*.ipynb                  # a run on GPUs, for the site
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from tools.notebook_editions import write_gpu_copy, write_solutions, write_student
from tools.notebook_outputs import scrub, stderr_of
from tools.notebook_runs import ANSI, CELL_TIMEOUT_S, execute, problems, read, run_all, started


def figures(notebook: nbformat.NotebookNode) -> Iterator[bytes]:
    """Every PNG among the outputs, in order."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                yield base64.b64decode(png)


def run(paths: list[Path], out: Path, fabric: str = "host", cell_timeout_s: float = CELL_TIMEOUT_S) -> int:
    """Execute copies into `out`: the notebook, its figures as PNG files, and the records that it saved.

    A notebook that fails is written as far as it came, and the next one runs.
    """
    ends = {}
    for path in paths:
        print(f"running {path} ...", flush=True)
        began_s, notebook = time.perf_counter(), read(path, fabric)
        ends[path.name] = _run_one(notebook, out, cell_timeout_s)
        elapsed_s = time.perf_counter() - began_s
        nbformat.write(notebook, out / path.name)
        names = [_write(out / f"{path.stem}-figure-{n}.png", png) for n, png in enumerate(figures(notebook), 1)]
        print(ends[path.name] or _report(notebook, path, out, names, elapsed_s), flush=True)
    failed = [name for name, end in ends.items() if end]
    if len(paths) > 1:
        words = f"failed: {', '.join(failed)}" if failed else "all ran to their end"
        print(f"{len(paths)} notebooks on fabric {fabric}: {words}")
    return int(bool(failed))


def _run_one(notebook: nbformat.NotebookNode, out: Path, cell_timeout_s: float) -> str:
    """Run all cells; what ended the run early, or nothing."""
    try:
        with started(notebook, out, cell_timeout_s) as client:
            run_all(client)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return ANSI.sub("", f"{type(error).__name__}: {error}")
    return ""


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return path.name


def _report(executed, path: Path, out: Path, names: list[str], elapsed_s: float) -> str:
    records = sorted(p.name for p in out.glob("*.parquet"))
    return "\n".join(
        [
            *_last_text(executed),
            "",
            f"done in {elapsed_s:.0f} s; under {out}/:",
            f"  notebook  {path.name}",
            f"  figures   {', '.join(names)}",
            f"  records   {', '.join(records) or 'none'}",
            "go on:  make lab                        the notebooks in JupyterLab",
            f"        {sys.executable} -m mnnvl_lab --help   plan, sweep, plot, doctor",
        ]
    )


def _last_text(executed) -> list[str]:
    """What the notebook itself printed last: its findings."""
    texts = [o["text"] for c in executed.cells for o in c.get("outputs", []) if o.get("name") == "stdout"]
    return texts[-1].rstrip().splitlines() if texts else []


def refresh(paths: list[Path]) -> None:
    """Execute each notebook in a fresh kernel and write it back, scrubbed.

    Raises:
        ValueError: a cell wrote to stderr: its reader would see it in red.
    """
    for path in paths:
        with TemporaryDirectory() as workdir:
            executed = execute(path, Path(workdir))
        red = [f"cell {number}: {text}" for number, cell in enumerate(executed.cells) if (text := stderr_of(cell))]
        if red:
            raise ValueError("\n".join([f"{path} wrote to stderr; mend the cause, then refresh it again", *red]))
        nbformat.write(scrub(executed), path)
        print(f"refreshed {path}", flush=True)


def check(paths: list[Path]) -> int:
    """Compare kept outputs with a fresh run, then run the cells again: they come out the same or say how to go on."""
    failed = 0
    for path in paths:
        with TemporaryDirectory() as workdir:
            found = problems(path, Path(workdir))
        failed += bool(found)
        print(*(found or [f"{path.name}: as committed"]), sep="\n", flush=True)
    if failed:
        print(f"{failed} of {len(paths)} notebooks differ; `python -m tools.notebooks refresh` renews their outputs")
    return int(failed > 0)


def student(paths: list[Path], out: Path) -> None:
    """Write the students' edition: no outputs, no answers, and what discusses an answer folded."""
    for path in paths:
        print(write_student(path, out), flush=True)


def solutions(paths: list[Path], out: Path) -> None:
    """Write the teacher's edition: every answer filled in, every cell executed."""
    for path in paths:
        print(write_solutions(path, out), flush=True)


def keep(paths: list[Path], ran_on: str, out: Path) -> None:
    """Keep notebooks that `run` executed on GPUs, for the site: links fit the folder, the first lines say where."""
    for path in paths:
        print(write_gpu_copy(path, ran_on, out), flush=True)


COMMANDS = {function.__name__: function for function in (run, refresh, check, student, solutions, keep)}
GPU_COPIES = Path(__file__).parents[1] / "docs" / "gpu"
EDITIONS = ("student", "solutions")
ALL = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.notebooks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__.splitlines()[0])
        several = {"nargs": "*", "default": ALL} if name in EDITIONS else {"nargs": "+"}
        command.add_argument("paths", type=Path, **several)
        if name in EDITIONS:
            command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder, made where missing")
        if function is keep:
            command.add_argument("--ran-on", required=True, metavar="WORDS", help="the GPUs and the day")
            command.add_argument("--out", type=Path, default=GPU_COPIES, metavar="DIR", help="default docs/gpu")
        if function is run:
            command.add_argument("--out", type=Path, default=Path("out"))
            command.add_argument("--fabric", default="host", help="host, shared_gpu or nvlink")
            limit = {"type": float, "default": CELL_TIMEOUT_S, "metavar": "S"}
            command.add_argument("--cell-timeout-s", **limit, help="most seconds for one cell")
    chosen = vars(parser.parse_args(arguments))
    return COMMANDS[chosen.pop("command")](**chosen) or 0


if __name__ == "__main__":
    sys.exit(main())
