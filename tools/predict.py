"""Predict layouts that were not measured, and say from what: one folder of `data/predictions/`.

python -m tools.predict data/*.parquet --out data/predictions/2026-11-26-many-starts
python -m tools.predict data/h100*.parquet --device h200 --ep-sizes 2 --out data/predictions/2026-11-26-h200

The model is fitted to uniform routing in bf16; what else was recorded, of other routings and formats, tests it. Points
of the layouts that are predicted are used for neither, so what is written stays a prediction after they have been
measured. With another `--device` than the records' nothing is left out: one GPU's model is then compared with another.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pandas as pd

from mnnvl_lab import records
from mnnvl_lab.analysis import latency_model as lm
from mnnvl_lab.cli.arguments import whole_in
from mnnvl_lab.errors import MOST_COUNT, LabError, Refused
from mnnvl_lab.model import require_model
from tools.arguments import file_path, run_tool, tool_parser

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
FORMATS = ("bf16", "fp8_block")
RECORDED_ON = "h100"
TRAINED_ON = ("uniform", "bf16")


def training(observations: Sequence[lm.Observation], ep_sizes: Sequence[int], device: str) -> list[lm.Observation]:
    """What the model is fitted to: uniform routing in bf16, of other layouts than the predicted."""
    return [o for o in known(observations, ep_sizes, device) if (o.point.routing, o.point.format) == TRAINED_ON]


def testing(observations: Sequence[lm.Observation], ep_sizes: Sequence[int], device: str) -> list[lm.Observation]:
    """What the fitted model is held against: everything else, of other layouts than the predicted."""
    return [o for o in known(observations, ep_sizes, device) if (o.point.routing, o.point.format) != TRAINED_ON]


def known(observations: Sequence[lm.Observation], ep_sizes: Sequence[int], device: str) -> list[lm.Observation]:
    """The observations without those that the predictions are about."""
    if device != RECORDED_ON:
        return list(observations)
    return [o for o in observations if o.point.fabric != "nvlink" or o.point.ep_size not in ep_sizes]


def fitted(observations: Sequence[lm.Observation]) -> list[lm.LatencyModel]:
    """A model of every mode of which there are points enough."""
    by_mode = {mode: [o for o in observations if o.point.mode == mode] for mode in lm.TERMS}
    models = [lm.fit(of_mode) for of_mode in by_mode.values() if len(of_mode) >= 3]
    if not models:
        raise Refused("no mode has three points: there is nothing to fit; give records of clock graph on GPUs")
    return models


def predictions(models: Sequence[lm.LatencyModel], *, ep_size: int, tokens: Sequence[int], model: str) -> pd.DataFrame:
    """One GPU per rank over NVLink, each mode and format, one row per point."""
    moe = require_model(model)
    shape = {"hidden": moe.hidden, "experts": moe.experts, "top_k": moe.top_k, "ep_size": ep_size}
    return lm.frame(
        m.predict(lm.Point(mode=m.mode, tokens=n, format=form, payload_in_workspace=m.mode == "one_sided", **shape))
        for m, form, n in product(models, FORMATS, tokens)
    )


def about(
    models: Sequence[lm.LatencyModel], tests: Sequence[lm.Observation], paths: Sequence[Path]
) -> dict[str, object]:
    """What the predictions come from, as plain JSON values."""
    this = records.provenance(fabric="host")
    return {
        "kind": "prediction",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **{field: this[field] for field in ("package", "commit", "dirty")},
        "what": "median of a round on the graph clock, slowest rank, in us; the interval holds it with 95 %",
        "training": [{"file": path.name, "sha256": sha256(path)} for path in paths],
        "leave_one_out": errors(pd.concat([lm.leave_one_out(model.observations) for model in models])),
        "held_out": errors(pd.concat([lm.holdout_errors(model, tests) for model in models])) if tests else [],
        "parameters": {model.mode: model.table().round(4).to_dict("records") for model in models},
        "minima": {model.mode: model.minima().drop(columns="mode").round(4).to_dict("records") for model in models},
    }


def errors(table: pd.DataFrame) -> list[dict[str, object]]:
    """Size of the errors by mode, fabric, EP size, ranks per GPU, format and routing."""
    by = ["mode", "fabric", "ep_size", "ranks_per_gpu", "format", "routing"]
    groups = table.assign(size=table["error_percent"].abs()).groupby(by, sort=False)["size"]
    found = groups.agg(points="size", median_percent="median", worst_percent="max").reset_index().round(2)
    return found.to_dict("records")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(paths: Sequence[Path]) -> dict[Path, list[lm.Observation]]:
    """The observations of all record files that have any."""
    found: dict[Path, list[lm.Observation]] = {}
    for path in paths:
        try:
            found[path] = lm.observations(records.load(path))
        except LabError as reason:
            print(f"{path}: left out: {reason}", file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = tool_parser("tools.predict", __doc__)
    parser.add_argument("records", nargs="+", type=file_path, metavar="FILE", help="record files to fit the model to")
    parser.add_argument(
        "--out",
        type=file_path,
        default=Path("out/predictions"),
        metavar="DIR",
        help="of the predictions (default %(default)s)",
    )
    sizes = {"nargs": "+", "type": whole_in(1, MOST_COUNT), "metavar": "N"}
    parser.add_argument("--ep-sizes", default=[4, 8], help="EP sizes that are predicted (default 4 8)", **sizes)
    parser.add_argument("--tokens", default=list(TOKENS), help="tokens per rank (default powers of two)", **sizes)
    parser.add_argument("--model", default="deepseek-v3", metavar="NAME", help="the MoE shape (default %(default)s)")
    parser.add_argument(
        "--device",
        default=RECORDED_ON,
        metavar="NAME",
        help="GPU that is predicted; names the files (default %(default)s)",
    )
    chosen = parser.parse_args(arguments)
    by_file = read(chosen.records)
    observations = [o for found in by_file.values() for o in found]
    about_what = chosen.ep_sizes, chosen.device
    models = fitted(training(observations, *about_what))
    chosen.out.mkdir(parents=True, exist_ok=True)
    for ep_size in chosen.ep_sizes:
        path = chosen.out / f"nvlink-{chosen.device}-ep{ep_size}.csv"
        predictions(models, ep_size=ep_size, tokens=chosen.tokens, model=chosen.model).to_csv(path, index=False)
        print(f"wrote {path}")
    origin = about(models, testing(observations, *about_what), list(by_file))
    (chosen.out / "model.json").write_text(json.dumps(origin, indent=2) + "\n")
    for kind in ("leave_one_out", "held_out"):
        print(f"{kind}:\n{pd.DataFrame(origin[kind]).to_string(index=False)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
