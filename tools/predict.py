"""Predict layouts that were not measured, and say from what: `data/predictions/`.

python -m tools.predict data/*.parquet --out data/predictions

Points of the layouts that are predicted are never trained on, so what is written stays a prediction after they have
been measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from mnnvl_lab import latency_model as lm
from mnnvl_lab import records
from mnnvl_lab.errors import Refused
from mnnvl_lab.model import require_model

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
FORMATS = ("bf16", "fp8_block")


def training(observations: Sequence[lm.Observation], ep_sizes: Sequence[int]) -> list[lm.Observation]:
    """The observations without those that the predictions are about."""
    return [o for o in observations if o.point.fabric != "nvlink" or o.point.ep_size not in ep_sizes]


def fitted(observations: Sequence[lm.Observation]) -> list[lm.LatencyModel]:
    """A model of every mode of which there are points enough."""
    by_mode = {mode: [o for o in observations if o.point.mode == mode] for mode in lm.TERMS}
    models = [lm.fit(of_mode) for of_mode in by_mode.values() if len(of_mode) >= 3]
    if not models:
        raise Refused("no mode has three points: there is nothing to fit; give records of clock graph on GPUs")
    return models


def predictions(models: Sequence[lm.LatencyModel], *, ep_size: int, tokens: Sequence[int], model: str) -> pd.DataFrame:
    """A GPU a rank over NVLink, each mode and format, one row a point."""
    moe = require_model(model)
    shape = {"hidden": moe.hidden, "experts": moe.experts, "top_k": moe.top_k, "ep_size": ep_size}
    return lm.frame(
        m.predict(lm.Point(mode=m.mode, tokens=n, format=form, payload_in_workspace=m.mode == "one_sided", **shape))
        for m, form, n in product(models, FORMATS, tokens)
    )


def about(models: Sequence[lm.LatencyModel], paths: Sequence[Path]) -> dict[str, object]:
    """What the predictions come from, as plain JSON values."""
    this = records.provenance(fabric="host")
    return {
        "kind": "prediction",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **{field: this[field] for field in ("package", "commit", "dirty")},
        "what": "median of a round on the graph clock, slowest rank, in us; the interval holds it with 95 %",
        "training": [{"file": path.name, "sha256": sha256(path)} for path in paths],
        "leave_one_out": {model.mode: left_out(model) for model in models},
        "parameters": {model.mode: model.table().round(4).to_dict("records") for model in models},
    }


def left_out(model: lm.LatencyModel) -> dict[str, object]:
    errors = lm.leave_one_out(model.observations)["error_percent"].abs()
    return {
        "points": len(errors),
        "median_percent": round(float(np.median(errors)), 2),
        "worst_percent": round(float(errors.max()), 2),
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(paths: Sequence[Path]) -> list[lm.Observation]:
    """The observations of all record files that have any."""
    found: list[lm.Observation] = []
    for path in paths:
        try:
            found += lm.observations(records.load(path))
        except Refused as reason:
            print(f"{path}: left out: {reason}", file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.predict", description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path, help="record files to fit the model to")
    parser.add_argument("--out", type=Path, default=Path("data/predictions"))
    parser.add_argument("--ep-sizes", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--model", default="deepseek-v3")
    chosen = parser.parse_args(arguments)
    models = fitted(training(read(chosen.records), chosen.ep_sizes))
    chosen.out.mkdir(parents=True, exist_ok=True)
    for ep_size in chosen.ep_sizes:
        path = chosen.out / f"nvlink-h100-ep{ep_size}.csv"
        predictions(models, ep_size=ep_size, tokens=chosen.tokens, model=chosen.model).to_csv(path, index=False)
        print(f"wrote {path}")
    origin = about(models, chosen.records)
    (chosen.out / "model.json").write_text(json.dumps(origin, indent=2) + "\n")
    for mode, errors in origin["leave_one_out"].items():
        print(f"{mode}: {errors['points']} points; left out, {errors['median_percent']} % median error, ", end="")
        print(f"{errors['worst_percent']} % worst")
    return 0


if __name__ == "__main__":
    sys.exit(main())
