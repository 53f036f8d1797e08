"""Compare each committed set of predictions with records made after it, and print the errors as they are.

python -m tools.evaluate data/h100x8_nvlink_ep8_bf16.parquet data/h100x8_nvlink_ep8_fp8.parquet
python -m tools.evaluate data/h200x2_nvlink_ep2_bf16.parquet data/h200x2_nvlink_ep2_fp8.parquet
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mnnvl_lab import datasets, records
from mnnvl_lab.analysis import latency_model as lm
from mnnvl_lab.errors import LabError, Refused
from tools.arguments import file_path, run_tool, tool_parser
from tools.pages import markdown

PREDICTIONS = datasets.DATA / "predictions"
SHOWN = ("mode", "tokens", "format", "latency_us", "predicted_us", "low_us", "high_us", "error_percent", "inside")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = tool_parser("tools.evaluate", __doc__)
    parser.add_argument(
        "records", nargs="+", type=file_path, metavar="FILE", help="record files of points that were predicted"
    )
    parser.add_argument(
        "--predictions",
        type=file_path,
        default=PREDICTIONS,
        metavar="DIR",
        help="folder of one set of predictions, or of several",
    )
    chosen = parser.parse_args(arguments)
    try:
        tables = [records.load(path) for path in chosen.records]
        observations = [o for table in tables for o in lm.observations(table)]
        device = predicted_device(tables)
        sets = prediction_sets(chosen.predictions, device)
        evaluated = {name: lm.evaluated(table, observations) for name, table in sets.items()}
    except LabError as reason:
        print(f"tools.evaluate: {reason}", file=sys.stderr)
        return 1
    print(f"predicted for {device.upper()}; recorded on {', '.join(dict.fromkeys(map(_device, tables)))}")
    for name, table in evaluated.items():
        print(f"\n## {name}", markdown(table[list(SHOWN)]), markdown(lm.score(table)), sep="\n\n")
        print(f"\n{len(observations) - len(table)} recorded points were not predicted, by their routing or format")
    return 0


def predicted_device(tables: Sequence[pd.DataFrame]) -> str:
    """The GPU whose predictions apply: an H200 has its own, all others are compared with those for the H100."""
    return "h200" if all("H200" in _device(table) for table in tables) else "h100"


def prediction_sets(folder: Path, device: str) -> dict[str, pd.DataFrame]:
    """The predictions of a folder by name of the set: the folder's own CSV files, or one set per subfolder.

    Raises:
        Refused: no CSV files.
    """
    files = {path: sorted(path.glob(f"*-{device}-*.csv")) for path in (folder, *sorted(folder.glob("*/")))}
    found = {path.name: pd.concat(map(pd.read_csv, csvs)) for path, csvs in files.items() if csvs}
    if not found:
        raise Refused(f"{folder}: no CSV files: give a folder that tools.predict wrote, or one that holds such folders")
    return found


def _device(table: pd.DataFrame) -> str:
    return str(records.provenance_of(table).get("device"))


if __name__ == "__main__":
    sys.exit(run_tool(main))
