"""Run notebooks from a fresh kernel, as a reader would, and keep outputs that read the same on every run.

python -m tools.notebooks run notebooks/00-quickstart.ipynb --out out              # copy, figures, records
python -m tools.notebooks run notebooks/00-quickstart.ipynb --fabric shared_gpu    # the same cells on GPUs
python -m tools.notebooks refresh notebooks/*.ipynb                                # run, scrub, write back
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

CELL_TIMEOUT_S = 300
SWITCH = 'fabric="host"'
LIVE = "live"  # tag of a cell whose output is this machine's own time, and so another at every run
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")


def execute(path: Path, workdir: Path, fabric: str = "host") -> nbformat.NotebookNode:
    """The notebook, executed top to bottom in a fresh kernel whose current directory is `workdir`.

    Args:
        fabric: takes the place of `host` in the notebook's one switch.

    Raises:
        ValueError: another fabric is asked for and the notebook has no switch.
        nbclient.exceptions.CellExecutionError: a cell raised, with its source and traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    if fabric != "host":
        switch(notebook, fabric)
    workdir.mkdir(parents=True, exist_ok=True)
    kernel = AsyncKernelManager(kernel_name="python3", transport_encryption="auto")
    where = {"metadata": {"path": str(workdir)}}
    return NotebookClient(notebook, km=kernel, timeout=CELL_TIMEOUT_S, resources=where).execute()


def switch(notebook: nbformat.NotebookNode, fabric: str) -> None:
    """Put `fabric` where the notebook says `fabric="host"`."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and SWITCH in cell.source]
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} cells say {SWITCH}: a notebook that runs on GPUs has one such switch")
    cells[0].source = cells[0].source.replace(SWITCH, f'fabric="{fabric}"')


def scrub(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Keep what a reader needs of the outputs and drop what changes from run to run."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        live = LIVE in cell.metadata.get("tags", [])
        cell.metadata = {"tags": [LIVE]} if live else {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [] if live else [_scrubbed(output) for output in cell.outputs if not _is_noise(output)]
    return notebook


def _is_noise(output) -> bool:
    """Progress bars and warnings, which go to stderr, and widgets without their state."""
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return widget or (output.output_type == "stream" and output.name == "stderr")


def _scrubbed(output):
    if output.output_type in ("execute_result", "display_data"):
        output.metadata = {}
    if "execution_count" in output:
        output.execution_count = None
    for holder, key in _texts(output):
        holder[key] = ADDRESS.sub("0x...", holder[key])
    return output


def _texts(output) -> Iterator[tuple[dict, str]]:
    if "text" in output:
        yield output, "text"
    for mime in output.get("data", {}):
        if mime.startswith("text/"):
            yield output["data"], mime


def figures(notebook: nbformat.NotebookNode) -> Iterator[bytes]:
    """Every PNG among the outputs, in order."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                yield base64.b64decode(png)


def run(paths: list[Path], out: Path, fabric: str = "host") -> None:
    """Execute copies into `out`: the notebook, its figures as PNG files, and the records that it saved."""
    for path in paths:
        print(f"running {path} ...", flush=True)
        began_s = time.perf_counter()
        executed = execute(path, out, fabric)
        nbformat.write(executed, out / path.name)
        names = [_write(out / f"{path.stem}-figure-{n}.png", png) for n, png in enumerate(figures(executed), 1)]
        print(_report(executed, path, out, names, time.perf_counter() - began_s))


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
    """Execute each notebook beside its file and write it back, scrubbed."""
    for path in paths:
        executed = scrub(execute(path, path.parent))
        nbformat.write(executed, path)
        print(f"refreshed {path}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.notebooks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("run", run), ("refresh", refresh)):
        command = commands.add_parser(name, help=function.__doc__.splitlines()[0])
        command.add_argument("paths", nargs="+", type=Path)
        if name == "run":
            command.add_argument("--out", type=Path, default=Path("out"))
            command.add_argument("--fabric", default="host", help="host, shared_gpu or nvlink")
    chosen = parser.parse_args(arguments)
    if chosen.command == "run":
        run(chosen.paths, chosen.out, chosen.fabric)
    else:
        refresh(chosen.paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
