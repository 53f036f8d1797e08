"""Outputs of a notebook: drop what changes from run to run, and compare two runs cell by cell."""

from __future__ import annotations

import base64
import difflib
import io
import re
from collections.abc import Iterator

import nbformat
import numpy as np
from PIL import Image, ImageSequence

from mnnvl_lab.progress import METADATA

LIVE = "live"  # tag of a cell whose output is this machine's own time, and so another at every run
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
WIDGET = "application/vnd.jupyter.widget-view+json"
MAX_PIXEL_DIFFERENCE = 16  # of 255: the rounding of another processor; anything drawn differs by more
MAX_DIFF_LINES = 40
MAX_REPR = 200


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
            cell.outputs = [] if live else _scrubbed(cell.outputs)
    return notebook


def _scrubbed(outputs: list) -> list:
    """Without progress and widgets, and without stderr; what was printed in pieces is one piece."""
    kept = []
    for output in outputs:
        if _is_noise(output):
            continue
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return [_without_traces(output) for output in kept]


def _is_noise(output: nbformat.NotebookNode) -> bool:
    progress = WIDGET in output.get("data", {}) or METADATA.items() <= output.get("metadata", {}).items()
    return progress or (output.output_type == "stream" and output.name == "stderr")


def _without_traces(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without execution counts, addresses in memory and long reprs; of the metadata, descriptions of figures stay."""
    if output.output_type in ("execute_result", "display_data"):
        alt = {mime: {"alt": more["alt"]} for mime, more in output.metadata.items() if alt_of(more)}
        output.metadata = nbformat.from_dict(alt)
    if "execution_count" in output:
        output.execution_count = None
    data = output.get("data", {})
    if "text/html" in data and _is_long_repr(data.get("text/plain", "")):
        del data["text/plain"]
    for holder, key in _texts(output):
        holder[key] = ADDRESS.sub("0x...", holder[key])
    return output


def alt_of(metadata: object) -> str:
    """The description in the metadata of one type of an output; empty if it has none."""
    return metadata.get("alt", "") if isinstance(metadata, dict) else ""


def _is_long_repr(text: str) -> bool:
    """Whether it is the repr of an object that is shown as a table: nobody reads it, and every new field changes it."""
    return len(text) > MAX_REPR and "\n" not in text


def _texts(output: nbformat.NotebookNode) -> Iterator[tuple[dict, str]]:
    if "text" in output:
        yield output, "text"
    for mime in output.get("data", {}):
        if mime.startswith("text/"):
            yield output["data"], mime


def stderr_of(cell: nbformat.NotebookNode) -> str:
    """What a run of the cell wrote to stderr: JupyterLab shows it in red."""
    return "".join(o.text for o in cell.get("outputs", []) if o.output_type == "stream" and o.name == "stderr")


def differences(expected: nbformat.NotebookNode, found: nbformat.NotebookNode) -> list[str]:
    """One text per cell whose outputs differ, with a diff; both notebooks are scrubbed and of the same source."""
    pairs = enumerate(zip(expected.cells, found.cells, strict=True))
    texts = {number: compare_cells(old, new) for number, (old, new) in pairs if old.cell_type == "code"}
    return [f"cell {number}: {text}" for number, text in texts.items() if text]


def compare_cells(old: nbformat.NotebookNode, new: nbformat.NotebookNode) -> str:
    """How the outputs of two runs of one cell differ, or an empty string."""
    first, second = (dict(_parts(cell.outputs)) for cell in (old, new))
    found = {part: _compare(part[1], first.get(part, ""), second.get(part, "")) for part in first | second}
    found = {part: text for part, text in found.items() if text}
    plain = {place for place, kind in found if kind == "text/plain"}
    shown = {(place, kind): text for (place, kind), text in found.items() if kind != "text/html" or place not in plain}
    return "\n".join(f"output {place} ({kind}) {text}" for (place, kind), text in shown.items())


def _parts(outputs: list) -> Iterator[tuple[tuple[int, str], str]]:
    """Every output as text, or base64 of an image, by its place and kind."""
    for place, output in enumerate(outputs):
        if output.output_type == "error":
            yield (place, "error"), f"{output.ename}: {output.evalue}"
        elif output.output_type == "stream":
            yield (place, output.name), output.text
        for mime, value in sorted(output.get("data", {}).items()):
            yield (place, mime), value if isinstance(value, str) else str(value)


def _compare(kind: str, old: str, new: str) -> str:
    if old == new:
        return ""
    if kind.startswith("image/"):
        return _compare_images(old, new) if old and new else "is missing" if old else "is new"
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), "kept", "fresh", lineterm="", n=1))
    more = [f"... {len(lines) - MAX_DIFF_LINES} lines more"] if len(lines) > MAX_DIFF_LINES else []
    return "\n".join(["differs", *lines[:MAX_DIFF_LINES], *more])


def _compare_images(old: str, new: str) -> str:
    """Size, number of frames and pixels; how a file is compressed does not matter."""
    first, second = _frames(old), _frames(new)
    shapes = [[frame.shape[1::-1] for frame in frames] for frames in (first, second)]
    if shapes[0] != shapes[1]:
        return f"sizes of its frames were {shapes[0]}, are {shapes[1]}"
    apart = [np.abs(a - b).max(axis=-1) > MAX_PIXEL_DIFFERENCE for a, b in zip(first, second, strict=True)]
    pixels = sum(int(each.sum()) for each in apart)
    return f"{pixels} of {sum(each.size for each in apart)} pixels differ" if pixels else ""


def _frames(encoded: str) -> list[np.ndarray]:
    """`[height, width, 4]` per frame, int16, so that differences do not wrap."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        return [np.asarray(frame.convert("RGBA"), dtype=np.int16) for frame in ImageSequence.Iterator(image)]
