"""Fit the models that `lab.predict` uses, print their errors, and keep them in `data/models/`.

python -m tools.calibrate gb200
python -m tools.calibrate h100 h200 gb200

An H100 and an H200 are fitted to this project's records, a GB200 to aiconfigurator's table in `data/published/`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mnnvl_lab import datasets
from mnnvl_lab.analysis import latency_model as lm
from mnnvl_lab.analysis.latency_model.solve import rivals
from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import require_gpu
from mnnvl_lab.prediction import calibration
from mnnvl_lab.prediction.calibration import Calibration, FittedPart
from mnnvl_lab.prediction.round_costs import ROUND_PARTS
from mnnvl_lab.prediction.table_fit import figures_of, fitted_part
from tools.arguments import file_path, run_tool, tool_parser

TABLE = "aiconfigurator_gb200"
UNIFORM = ("uniform", "bf16")
RECORDS = {
    "h100": ("h100x2_nvlink_ep2_bf16", "h100x2_shared_ep4_bf16", "h100x2_shared_ep8_bf16"),
    "h200": ("h200x2_nvlink_ep2_bf16", "h200x2_shared_ep4_bf16", "h200x2_shared_ep8_bf16"),
}
"""What each device is fitted to, where the files exist; other formats and routings test the fit."""


def of_records(gpu: str) -> Calibration:
    """The latency model of rounds, fitted to records of one kind of GPU."""
    names = [name for name in RECORDS[gpu] if name in datasets.recorded_names()]
    if not names:
        raise Refused(f"no records of {gpu} in {datasets.DATA}: record {', '.join(RECORDS[gpu])} with tools.record")
    observed = [o for name in names for o in lm.observations(datasets.load_recorded(name))]
    training = [o for o in observed if (o.point.routing, o.point.format) == UNIFORM]
    by_mode = {mode: [o for o in training if o.point.mode == mode] for mode in lm.TERMS}
    parts = {mode: (_of_round(lm.fit(of_mode)),) for mode, of_mode in by_mode.items() if len(of_mode) >= 3}
    nvlink = [o.point for o in training if o.point.fabric == "nvlink"]
    name = require_gpu(gpu).name.split()[0]
    return Calibration(
        gpu=gpu,
        parts=parts,
        basis=f"{name}: fitted to records of EP {_listed(p.ep_size for p in nvlink)} over NVLink here",
        known=_known(nvlink, {mode: ["bf16"] for mode in parts}),
        fitted_to=tuple(_file(datasets.DATA / f"{name}.parquet") for name in names),
    )


def of_table(gpu: str) -> Calibration:
    """The phases of aiconfigurator's table, each fitted by itself."""
    table = datasets.load_published(TABLE)
    parts: dict[str, tuple[FittedPart, ...]] = {}
    for figures in figures_of(table, gpu=require_gpu(gpu)):
        parts[figures.part.mode] = (*parts.get(figures.part.mode, ()), fitted_part(figures))
    carried = table[table["phase"] == "dispatch"].groupby("mode")["format"].unique()
    sizes = table.groupby("mode")["ep_size"].unique()
    return Calibration(
        gpu=gpu,
        parts=parts,
        basis="GB200: fitted to aiconfigurator's published table (TensorRT-LLM 1.2.0rc6, phases one by one, balanced)",
        known={
            "ep_sizes": {mode: sorted(map(int, of_mode)) for mode, of_mode in sizes.items()},
            "formats": {mode: sorted(of_mode) for mode, of_mode in carried.items()},
            "routings": ["balanced"],
            "shape": _shape(table.iloc[0]),
            "most_tokens": int(table["tokens"].max()),
        },
        fitted_to=(_file(datasets.FOLDER / f"{TABLE}.csv"),),
    )


def errors_table(made: Calibration) -> pd.DataFrame:
    """Errors of each part as the fit found them."""
    fitted = [fitted for of_mode in made.parts.values() for fitted in of_mode]
    return pd.DataFrame({"mode": f.part.mode, "part": f.part.name, **f.errors} for f in fitted)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = tool_parser("tools.calibrate", __doc__)
    parser.add_argument("gpus", nargs="+", choices=(*RECORDS, "gb200"), metavar="GPU", help="h100, h200, gb200")
    parser.add_argument("--out", type=file_path, default=calibration.FOLDER, metavar="DIR", help="default %(default)s")
    chosen = parser.parse_args(arguments)
    for gpu in chosen.gpus:
        made = of_records(gpu) if gpu in RECORDS else of_table(gpu)
        print(f"{made.basis}\n{errors_table(made).to_string(index=False)}\nwrote {made.save(chosen.out)}")
    return 0


def _of_round(model: lm.LatencyModel) -> FittedPart:
    errors = lm.leave_one_out(model.observations)["error_percent"].abs()
    return FittedPart(
        part=ROUND_PARTS[model.mode],
        optima=np.array([optimum.logs for optimum in rivals(model.optima)]),
        covariance=model.covariance,
        error=model.error,
        error_within=model.error,
        errors={
            "how": "left out one point after the other",
            "points": len(errors),
            "median_percent": round(float(errors.median()), 1),
            "worst_percent": round(float(errors.max()), 1),
        },
    )


def _known(points: Sequence[lm.Point], formats: dict[str, list[str]]) -> dict[str, object]:
    sizes = sorted({p.ep_size for p in points})
    return {
        "ep_sizes": dict.fromkeys(formats, sizes),
        "formats": formats,
        "routings": ["uniform"],
        "shape": _shape(vars(points[0])),
        "most_tokens": max(p.tokens for p in points),
    }


def _shape(row) -> dict[str, int]:
    return {name: int(row[name]) for name in ("hidden", "experts", "top_k")}


def _file(path: Path) -> dict[str, str]:
    return {
        "file": str(path.relative_to(datasets.DATA)),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _listed(sizes) -> str:
    return ", ".join(map(str, sorted(set(sizes))))


if __name__ == "__main__":
    sys.exit(run_tool(main))
