"""What the pages of `docs/` are made from: the recorded pair, the fitted models, their errors, the predictions."""

from __future__ import annotations

import json
from functools import cache
from types import MappingProxyType

import pandas as pd

from mnnvl_lab import datasets, records
from mnnvl_lab.analysis import latency_model as lm
from tools import predict

PAIR = "h100x2_nvlink_ep2_bf16"
PREDICTED = (4, 8)
FITTED_TO = (PAIR, "h100x2_shared_ep4_bf16", "h100x2_shared_ep8_bf16")
"""As `model.json` of each set of predictions says: what was recorded later tests the model and never enters it."""
FIRST = datasets.DATA / "predictions" / "2026-11-24-one-start"
LATEST = datasets.DATA / "predictions" / "2026-11-26-many-starts"
RECORDED_LATER = (
    "h100x2_nvlink_ep2_fp8",
    "h100x2_shared_ep4_fp8",
    "h100x2_shared_ep8_fp8",
    "h100x1_shared_ep2_bf16",
    "h100x1_shared_ep2_fp8",
    "h100x1_shared_ep4_bf16",
    "h100x1_shared_ep4_fp8",
    "h100x1_shared_ep8_bf16",
    "h100x1_shared_ep8_fp8",
)


@cache
def fitted() -> tuple[list[lm.LatencyModel], list[lm.Observation]]:
    """The models of the latest committed predictions, fitted anew to the same files, and what tests them."""
    known = [o for name in FITTED_TO for o in lm.observations(datasets.load_recorded(name))]
    later = [o for name in RECORDED_LATER for o in lm.observations(datasets.load_recorded(name))]
    about = PREDICTED, predict.RECORDED_ON
    return predict.fitted(predict.training(known, *about)), [*predict.testing(known, *about), *later]


@cache
def left_out() -> pd.DataFrame:
    """Every point of the fit, predicted by a fit to all the others of its mode."""
    return pd.concat([lm.leave_one_out(model.observations) for model in fitted()[0]])


@cache
def unseen() -> pd.DataFrame:
    """Every point that never entered the fit, and what the model makes of it."""
    models, observations = fitted()
    return pd.concat([lm.holdout_errors(model, observations) for model in models])


def unseen_errors() -> pd.DataFrame:
    """Sizes of the errors of `unseen` by group."""
    return pd.DataFrame(predict.errors(unseen()))


BARE = MappingProxyType(
    {
        "H100": ("bare_flashinfer_h100_b", "h100x2_nvlink_ep2_beside_bare"),
        "H200": ("bare_flashinfer_h200", "h200x2_nvlink_ep2_bf16"),
    }
)
"""By card: medians of the bare loop, and the lab's record. For the H200 they are of two machines."""
FREED = "two_sided_rows_freed"  # what `two_sided` was in the first files


@cache
def bare_table(card: str = "H100") -> pd.DataFrame:
    """FlashInfer's classes in a bare loop beside the lab's medians: `mode, tokens, latency_us, lab`, and the ratio.

    `two_sided` holds the received rows until the round ends, as the lab does; `two_sided_rows_freed` does not.
    """
    name, record = BARE[card]
    bare_us = pd.DataFrame(json.loads((datasets.DATA / f"{name}.json").read_text())["medians"])
    if FREED not in set(bare_us["mode"]):
        bare_us["mode"] = bare_us["mode"].replace("two_sided", FREED)
    samples = datasets.load_recorded(record).query("clock == 'graph' and phase == 'round' and routing == 'uniform'")
    lab_us = records.summary(samples).set_index(["mode", "tokens"])["p50_us"]
    lab_us = lab_us.rename("lab").reset_index()
    lab_us = pd.concat([lab_us, lab_us[lab_us["mode"] == "two_sided"].assign(mode=FREED)])
    table = bare_us.merge(lab_us, on=["mode", "tokens"], how="left")
    return table.assign(**{"lab over bare (%)": 100 * (table["lab"] / table["latency_us"] - 1)})


def predictions(ep_size: int, *, folder=LATEST) -> pd.DataFrame:
    """Committed predictions of an EP size with one H100 per rank."""
    return pd.read_csv(folder / f"nvlink-h100-ep{ep_size}.csv")


def moved(ep_size: int) -> pd.DataFrame:
    """The latest predictions with `size`: per cent by which each differs from the first set's."""
    first, latest = predictions(ep_size, folder=FIRST), predictions(ep_size)
    return latest.assign(size=(100 * (latest["predicted_us"] / first["predicted_us"] - 1)).abs())
