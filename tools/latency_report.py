"""Fill the tables and figures of `docs/latency.md` and `docs/method.md` from the recorded data.

    python -m tools.latency_report

What stands between `<!-- NAME -->` and `<!-- /NAME -->` is replaced; a part whose record is missing stays as it is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType

import matplotlib
import pandas as pd

from mnnvl_lab import bandwidth, checkout, crossover, knobs, recorded, records
from mnnvl_lab import latency_model as lm
from mnnvl_lab.errors import LabError
from mnnvl_lab.model import require_format
from mnnvl_lab.plots.crossover import draw as draw_crossover
from mnnvl_lab.plots.prediction import prediction_errors
from mnnvl_lab.routing import Load, parse
from tools import link_budget, predict
from tools.arguments import run_tool, tool_parser
from tools.pages import DOCS, markdown, save_figure

PAIR = "h100x2_nvlink_ep2_bf16"
PREDICTED = (4, 8)
FITTED_TO = (PAIR, "h100x2_shared_ep4_bf16", "h100x2_shared_ep8_bf16")
"""As `model.json` of each set of predictions says: what was recorded later tests the model and never enters it."""
LATEST = checkout.DATA / "predictions" / "2026-11-26-many-starts"
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
SHOWN_TOKENS = (1, 16, 128, 512, 1024, 2048, 4096)


@cache
def fitted() -> tuple[list[lm.LatencyModel], list[lm.Observation]]:
    """The models of the committed predictions, fitted anew to the same files, and what tests them."""
    known = [o for name in FITTED_TO for o in lm.observations(recorded.load(name))]
    later = [o for name in RECORDED_LATER for o in lm.observations(recorded.load(name))]
    about = PREDICTED, predict.RECORDED_ON
    return predict.fitted(predict.training(known, *about)), [*predict.testing(known, *about), *later]


def errors() -> str:
    """Points left out one by one, then what was never in the fit."""
    models, unseen = fitted()
    left_out = pd.concat([lm.leave_one_out(model.observations) for model in models])
    tests = pd.concat([lm.held_against(model, unseen) for model in models])
    device = records.provenance_of(recorded.load(PAIR))["device"]
    save_figure(prediction_errors(left_out, device=device), "predicted_and_recorded")
    named = {"left out one by one": left_out, "never in the fit": tests}
    parts = [pd.DataFrame(predict.errors(table)).assign(points_are=name) for name, table in named.items()]
    return markdown(pd.concat(parts)[["points_are", *parts[0].columns[:-1]]], digits=1)


def parameters() -> str:
    """Every mode's, with their widths and where they come from."""
    tables = [model.table().assign(mode=model.mode) for model in fitted()[0]]
    names = ["mode", "parameter", "value", "factor", "prior", "prior_factor", "from_data", "meaning"]
    return markdown(pd.concat(tables)[names], digits=2)


def fastest() -> str:
    """Who is ahead at which token count, under each routing recorded."""
    samples = recorded.load(PAIR)
    uniform = samples[samples["routing"] == "uniform"]
    save_figure(draw_crossover(uniform), "who_is_ahead")
    table = crossover.table(samples)
    return markdown(table[["routing", "tokens", "fastest", "p50_us", "runner_up", "runner_up_us", "lead_percent"]])


def places() -> str:
    """Where two modes change places, or that none do."""
    changes = crossover.crossings(recorded.load(PAIR))
    if changes.empty:
        return "No two modes change places between 1 and 4096 tokens."
    return markdown(changes[["routing", "below", "above", "tokens", "tokens_low", "tokens_high"]])


def budget() -> str:
    """What a round of many tokens takes beyond its bytes."""
    return link_budget.budget(recorded.load(PAIR))


def knob_gains() -> str:
    """Gain of every setting over its mode's default, a column a token count; `~` where the samples show none."""
    gains = knobs.gains(recorded.load("h100x2_nvlink_ep2_knobs", kind=knobs.KIND))
    words = gains["gain_percent"].map("{:+.1f}".format).where(gains["different"], "~")
    table = gains.assign(words=words).pivot(index=["mode", "setting"], columns="tokens", values="words")
    return markdown(table.reset_index())


def best_knobs() -> str:
    """The fastest setting of each mode and token count."""
    found = knobs.best(recorded.load("h100x2_nvlink_ep2_knobs", kind=knobs.KIND))
    return markdown(found[["mode", "tokens", "setting", "p50_us", "gain_percent", "different"]])


def results() -> str:
    """The pair's latencies as the peers print them: each phase after a barrier, and rounds back to back."""
    samples = recorded.load(PAIR)
    uniform = samples[(samples["routing"] == "uniform") & samples["tokens"].isin(SHOWN_TOKENS)]
    by_clock = records.summary(uniform).set_index(["mode", "tokens", "clock", "phase"])
    rows = [_result(by_clock, mode, tokens) for mode in uniform["mode"].unique() for tokens in SHOWN_TOKENS]
    return markdown(pd.DataFrame(rows), digits=1)


def _result(by_clock: pd.DataFrame, mode: str, tokens: int) -> dict[str, object]:
    round_us = by_clock.loc[(mode, tokens, "graph", "round"), "p50_us"]
    eager = {phase: by_clock.loc[(mode, tokens, "eager", phase)] for phase in ("dispatch", "combine")}
    words = {phase: f"{line['p50_us']:.1f} / {line['p99_us']:.1f}" for phase, line in eager.items()}
    dispatch = _bandwidths(by_clock.loc[(mode, tokens, "eager", "dispatch")], tokens)
    both = _bandwidths(by_clock.loc[(mode, tokens, "graph", "round")], tokens)
    return {
        "mode": mode,
        "tokens": tokens,
        "dispatch, eager, p50 / p99 (µs)": words["dispatch"],
        "combine, eager, p50 / p99 (µs)": words["combine"],
        "round, graph, p50 (µs)": round_us,
        "dispatch, eager, deepep (GB/s)": dispatch["deepep"],
        "round, graph, wire (GB/s)": 2 * both["wire"],
    }


def _bandwidths(point: pd.Series, tokens: int) -> Mapping[str, float]:
    """Of one pass of the rows over the link."""
    load = Load(routing=parse("uniform"), tokens=tokens, seed=0)
    transfer = bandwidth.Transfer.of(
        load,
        experts=256,
        top_k=8,
        ep_size=2,
        bytes_per_token=require_format("bf16").bytes_per_token(7168),
        latency_us=point["p50_us"],
    )
    return bandwidth.table(transfer).set_index("convention")["gigabytes_per_s"]


def bare() -> str:
    """FlashInfer's classes in a bare loop beside the lab's medians."""
    path = checkout.DATA / "bare_flashinfer.json"
    bare_us = pd.DataFrame(json.loads(path.read_text())["medians"])
    samples = recorded.load(PAIR).query("clock == 'graph' and phase == 'round' and routing == 'uniform'")
    lab_us = records.summary(samples).set_index(["mode", "tokens"])["p50_us"].rename("lab")
    table = bare_us.set_index(["mode", "tokens"]).join(lab_us).reset_index()
    table["lab over bare (%)"] = 100 * (table["lab"] / table["latency_us"] - 1)
    return markdown(table.rename(columns={"latency_us": "bare loop (µs)", "lab": "lab (µs)"}), digits=1)


PARTS: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        part.__name__: part
        for part in (
            errors,
            parameters,
            fastest,
            places,
            budget,
            link_budget.remainder,
            knob_gains,
            best_knobs,
            bare,
            results,
        )
    }
)


def filled(page: str) -> str:
    """The page with every part that it names made anew."""
    for name in re.findall(r"<!-- (\w+) -->", page):
        try:
            made = PARTS[name]()
        except LabError as reason:
            print(f"{name}: left as it is: {reason}", file=sys.stderr)
            continue
        page = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda m, made=made: m[1] + made + "\n" + m[2],
            page,
            flags=re.S,
        )
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    tool_parser("tools.latency_report", __doc__).parse_args(arguments)
    matplotlib.use("Agg")
    for page in (DOCS / "latency.md", DOCS / "method.md"):
        page.write_text(filled(page.read_text()))
        print(page.relative_to(DOCS.parent))


if __name__ == "__main__":
    sys.exit(run_tool(main))
