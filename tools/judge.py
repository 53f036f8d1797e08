"""Hold the committed predictions against records made after them, and print the errors as they are.

python -m tools.judge data/h100x8_nvlink_ep8_bf16.parquet data/h100x8_nvlink_ep8_fp8.parquet
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mnnvl_lab import checkout, records
from mnnvl_lab import latency_model as lm
from mnnvl_lab.errors import LabError
from tools.pages import markdown

PREDICTIONS = checkout.DATA / "predictions"
SHOWN = ("mode", "tokens", "format", "latency_us", "predicted_us", "low_us", "high_us", "error_percent", "inside")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.judge", description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path, help="record files of points that were predicted")
    parser.add_argument("--predictions", type=Path, default=PREDICTIONS, help="folder of the predictions' CSV files")
    chosen = parser.parse_args(arguments)
    try:
        tables = [records.load(path) for path in chosen.records]
        observations = [o for table in tables for o in lm.observations(table)]
        predictions = pd.concat([pd.read_csv(path) for path in sorted(chosen.predictions.glob("*.csv"))])
        judged = lm.judged(predictions, observations)
    except LabError as reason:
        print(f"tools.judge: {reason}", file=sys.stderr)
        return 1
    print(f"predicted for H100; recorded on {', '.join(dict.fromkeys(map(_device, tables)))}\n")
    print(markdown(judged[list(SHOWN)]), markdown(lm.score(judged)), sep="\n\n")
    print(f"\n{len(observations) - len(judged)} recorded points were not predicted, by their routing or format")
    return 0


def _device(table: pd.DataFrame) -> str:
    return str(records.provenance_of(table).get("device"))


if __name__ == "__main__":
    sys.exit(main())
