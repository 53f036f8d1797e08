"""Fill the tables, numbers and figures of the README and the pages of `docs/` from the data.

    python -m tools.latency_report

What stands between `<!-- NAME -->` and `<!-- /NAME -->` is replaced, and so are the numbers that `page_numbers`
describes; a part whose record is missing stays as it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import matplotlib
import pandas as pd

from mnnvl_lab import datasets, records
from mnnvl_lab.analysis import bandwidth, crossover
from mnnvl_lab.errors import LabError
from mnnvl_lab.model import require_format
from mnnvl_lab.plots.compare import fastest as draw_crossover
from mnnvl_lab.plots.compare import prediction_errors
from mnnvl_lab.plots.style import LINE_STYLES
from mnnvl_lab.routing import Load, parse
from tools import link_budget, page_numbers, predict, syllabus, tuning, two_cards
from tools.arguments import run_tool, tool_parser
from tools.pages import DOCS, markdown, save_figure, tokens_heading
from tools.report_data import (
    BARE,
    PAIR,
    PREDICTED,
    bare_table,
    fitted,
    left_out,
    predictions,
    unseen,
)

PAGES = (DOCS.parent / "README.md", DOCS.parent / "data" / "README.md", *sorted(DOCS.glob("*.md")))
AUXILIARY = ("growth", "knobs", "links", "memory")
"""Recorded tables that hold no samples of a sweep, by the end of their names."""
SHOWN_TOKENS = (1, 16, 128, 512, 1024, 2048, 4096)


def errors() -> str:
    """Points left out one by one, then what was never in the fit."""
    named = {"left out one by one": predict.errors(left_out()), "never in the fit": predict.errors(unseen())}
    parts = [pd.DataFrame(rows).assign(points_are=name) for name, rows in named.items()]
    return markdown(pd.concat(parts)[["points_are", *parts[0].columns[:-1]]], digits=1)


def parameters() -> str:
    """Every mode's, with their widths and where they come from."""
    tables = [model.table().assign(mode=model.mode) for model in fitted()[0]]
    names = ["mode", "parameter", "value", "factor", "low", "high", "prior", "prior_factor", "from_data", "meaning"]
    return markdown(pd.concat(tables)[names], digits=2)


def minima() -> str:
    """The distinct minima of each mode that has several, best first."""
    tables = [model.minima() for model in fitted()[0] if len(model.optima) > 1]
    names = ["mode", "objective", "behind", "eager_us", "eager_gigabytes_per_s", "bulk_us", "bulk_gigabytes_per_s"]
    return markdown(pd.concat(tables)[names], digits=2)


def predicted() -> str:
    """The latest committed predictions of four and eight GPUs, each with its interval."""
    rows = [
        {"EP": ep_size, "format": form, "mode": LINE_STYLES[mode].label} | _cells(points)
        for ep_size in sorted(PREDICTED, reverse=True)
        for (form, mode), points in predictions(ep_size).groupby(["format", "mode"], sort=False)
    ]
    return markdown(pd.DataFrame(rows).sort_values(["EP", "format"], ascending=[False, True], kind="stable"))


def _cells(points: pd.DataFrame) -> dict[str, str]:
    by_tokens = points.set_index("tokens")
    shown = {tokens: by_tokens.loc[tokens] for tokens in (1, 128, 1024, 4096, 8192)}
    words = {n: f"{p['predicted_us']:.0f} ({p['low_us']:.0f} to {p['high_us']:.0f})" for n, p in shown.items()}
    return {tokens_heading(tokens): text for tokens, text in words.items()}


def experts() -> str:
    """Which recorded sweeps time the fake experts."""
    tables = {
        name: datasets.load_recorded(name)
        for name in datasets.recorded_names()
        if name.rsplit("_", 1)[1] not in AUXILIARY
    }
    timed = {name: "experts" in set(table["phase"]) for name, table in tables.items()}
    rows = [
        {"phase `experts`": word, "files": _files(timed, has)} for has, word in ((True, "timed"), (False, "absent"))
    ]
    return markdown(pd.DataFrame(rows))


def _files(timed: Mapping[str, bool], has: bool) -> str:
    return ", ".join(f"`{name}`" for name, found in timed.items() if found == has)


def elsewhere() -> str:
    """What CollectiveX measured on eight H100s: a round in bf16, median."""
    table = datasets.load_published("collectivex_h100")
    rounds = table.query("phase == 'round' and percentile == 'p50' and format == 'bf16' and quantity == 'latency'")
    lines = rounds.assign(words=rounds["value"].map("{:.1f}".format), line=rounds["library"] + ", " + rounds["mode"])
    wide = lines.pivot(index="line", columns="tokens", values="words").fillna("")
    return markdown(wide.rename_axis("library (µs)").reset_index())


def fastest() -> str:
    """Who is ahead at which token count, under each routing recorded."""
    table = crossover.table(datasets.load_recorded(PAIR))
    return markdown(table[["routing", "tokens", "fastest", "p50_us", "runner_up", "runner_up_us", "lead_percent"]])


def places() -> str:
    """Where two modes change places, or that none do."""
    changes = crossover.crossings(datasets.load_recorded(PAIR))
    if changes.empty:
        return "No two modes change places between 1 and 4096 tokens."
    return markdown(changes[["routing", "below", "above", "tokens", "tokens_low", "tokens_high"]])


def budget() -> str:
    """What a round of many tokens takes beyond its bytes."""
    return link_budget.budget(datasets.load_recorded(PAIR))


def knob_gains() -> str:
    """Gain of every setting over its mode's default, a column per token count; `~` where the samples show none."""
    gains = tuning.gains(datasets.load_recorded("h100x2_nvlink_ep2_knobs", kind=tuning.KIND))
    words = gains["gain_percent"].map("{:+.1f}".format).where(gains["different"], "~")
    table = gains.assign(words=words).pivot(index=["mode", "setting"], columns="tokens", values="words")
    return markdown(table.reset_index())


def best_knobs() -> str:
    """The fastest setting of each mode and token count."""
    found = tuning.best(datasets.load_recorded("h100x2_nvlink_ep2_knobs", kind=tuning.KIND))
    return markdown(found[["mode", "tokens", "setting", "p50_us", "gain_percent", "different"]])


def results() -> str:
    """The pair's latencies as the peers print them: each phase after a barrier, and rounds back to back."""
    samples = datasets.load_recorded(PAIR)
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
    renamed = {"latency_us": "bare loop (µs)", "lab": "lab (µs)"}
    tables = [bare_table(card).assign(card=card) for card in BARE]
    columns = ["card", *tables[0].columns.drop("card")]
    return markdown(pd.concat(tables)[columns].rename(columns=renamed), digits=1)


PARTS: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        part.__name__: part
        for part in (
            errors,
            parameters,
            minima,
            predicted,
            elsewhere,
            experts,
            fastest,
            places,
            budget,
            link_budget.remainder,
            knob_gains,
            best_knobs,
            bare,
            results,
            syllabus.syllabus_notebooks,
            two_cards.two_cards,
            two_cards.h200_errors,
            two_cards.four_gpus,
            two_cards.four_gpus_errors,
        )
    }
)


def filled(page: str) -> str:
    """The page with every part and every number that it names made anew."""
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
    return page_numbers.filled(page)


def figures() -> None:
    """The figures of the pages."""
    device = records.provenance_of(datasets.load_recorded(PAIR))["device"]
    save_figure(prediction_errors(left_out(), device=device), "predicted_and_recorded")
    samples = datasets.load_recorded(PAIR)
    save_figure(draw_crossover(samples[samples["routing"] == "uniform"]), "who_is_ahead")


def main(arguments: Sequence[str] | None = None) -> None:
    tool_parser("tools.latency_report", __doc__).parse_args(arguments)
    matplotlib.use("Agg")
    for page in PAGES:
        page.write_text(filled(page.read_text()))
        print(page.relative_to(DOCS.parent))
    figures()


if __name__ == "__main__":
    sys.exit(run_tool(main))
