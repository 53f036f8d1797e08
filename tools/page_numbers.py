"""Numbers inside the sentences of a page, each computed from `data/`.

`<!--NAME ARGUMENTS-->12.3<!--/-->` in a page is replaced by what `NUMBERS[NAME]` returns for the arguments, with as
many decimals as the page shows. `<!--given-->5 s<!--/-->` marks a number that nobody measured: a setting, or what a
standard or a data sheet says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
import pandas as pd

from mnnvl_lab import datasets, link_rates, records
from mnnvl_lab.analysis import latency_model as lm
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.hardware import require_gpu
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import require_model
from mnnvl_lab.plots.tables import memory_table
from tools import link_budget, report_data, tuning, two_cards

SPAN = re.compile(r"<!--(?P<key>[a-z_]+(?: [^>]*?)?)-->(?P<text>[^<]*)<!--/-->")
GIVEN = "given"


def filled(page: str) -> str:
    """The page with every marked number computed anew."""
    return SPAN.sub(_filled, page)


def value_of(key: str) -> float:
    """The number that a key such as `error one_sided nvlink 2 bf16 uniform worst` stands for."""
    name, *arguments = key.split()
    return NUMBERS[name](*arguments)


def _filled(span: re.Match[str]) -> str:
    if span["key"] == GIVEN:
        return span[0]
    decimals = len(span["text"].partition(".")[2])
    return f"<!--{span['key']}-->{value_of(span['key']):.{decimals}f}<!--/-->"


def median(mode: str, tokens: str, record: str = report_data.PAIR) -> float:
    """µs of a round on the graph clock, uniform routing."""
    return _medians(record)[mode, int(tokens)]


def error(mode: str, fabrics: str, ep_sizes: str, formats: str, routings: str, statistic: str) -> float:
    """Per cent by which the model misses points never in the fit: `median` or `worst` size of the groups chosen.

    Arguments are comma-separated values, or `any`; ranks that all share one GPU have the fabric `one_gpu`.
    """
    chosen = _groups()
    wanted = {"mode": mode, "place": fabrics, "ep_size": ep_sizes, "format": formats, "routing": routings}
    for column, values in wanted.items():
        if values != "any":
            chosen = chosen[chosen[column].astype(str).isin(values.split(","))]
    return float(chosen[f"{statistic}_percent"].max())


def bias(mode: str, ep_size: str, least: str, most: str) -> float:
    """Per cent: the largest size of the errors left out one by one over NVLink, of so many to so many tokens."""
    table = report_data.left_out().query(
        "mode == @mode and fabric == 'nvlink' and ep_size == @size", local_dict={"mode": mode, "size": int(ep_size)}
    )
    return float(table.loc[table["tokens"].between(int(least), int(most)), "error_percent"].abs().max())


def left_out(statistic: str) -> float:
    """Per cent: the worst `median` or `worst` of the modes over NVLink, left out one by one."""
    groups = report_data.left_out().query("fabric == 'nvlink'").groupby("mode")["error_percent"]
    sizes = groups.agg(lambda errors: getattr(errors.abs(), {"median": "median", "worst": "max"}[statistic])())
    return float(sizes.max())


def limit(quantity: str, direction: str, column: str = "gigabytes_per_s") -> float:
    """A recorded limit of the pair: GB/s, halved where both directions are summed, or `latency_us`."""
    found = link_rates.require_limit(datasets.load_recorded("h100x2_nvlink_links", kind="links"), quantity, direction)[
        column
    ]
    return float(found) / (2 if direction == "both_ways" and column == "gigabytes_per_s" else 1)


def left_by_bytes(what: str) -> float:
    """Of a one-sided round of 4096 tokens: see `link_budget.parts`."""
    return link_budget.parts(datasets.load_recorded(report_data.PAIR))[what]


def gain(mode: str, tokens: str, *setting: str) -> float:
    """Per cent of latency that a knob saves over its mode's default; negative where it costs."""
    return float(_knobs().loc[(mode, " ".join(setting), int(tokens)), "gain_percent"])


def loss(mode: str, tokens: str, *setting: str) -> float:
    return -gain(mode, tokens, *setting)


def saved_us(mode: str, tokens: str, *setting: str) -> float:
    """µs that turning a knob away from the default costs."""
    return float(_knobs().loc[(mode, " ".join(setting), int(tokens)), "p50_us"] - _knob_default(mode, tokens))


def times(mode: str, tokens: str, *setting: str) -> float:
    """Latency of a setting over that of its mode's default."""
    return float(_knobs().loc[(mode, " ".join(setting), int(tokens)), "p50_us"] / _knob_default(mode, tokens))


def apart(tokens: str) -> float:
    """Per cent between the defaults of the knobs' record and the same points of the main record, the larger mode."""
    modes = ("one_sided", "two_sided")
    return max(abs(100 * (_knob_default(mode, tokens) / median(mode, tokens) - 1)) for mode in modes)


def repeat(mode: str, tokens: str) -> float:
    """Per cent between a round and its repetition on another machine of the kind."""
    return abs(100 * (median(mode, tokens, "h100x2_nvlink_ep2_again") / median(mode, tokens) - 1))


def bare_apart(rows: str) -> float:
    """Per cent between the lab and a bare loop, the worst point: of loops that hold received rows (`held`), or not."""
    table = report_data.bare_table()
    freed = table["mode"] == report_data.FREED
    return float(table[freed if rows == "freed" else ~freed]["lab over bare (%)"].abs().max())


def bare(mode: str, tokens: str) -> float:
    """Median of the bare loop on the H100s, in microseconds."""
    return float(report_data.bare_table().set_index(["mode", "tokens"]).loc[(mode, int(tokens)), "latency_us"])


def predicted(mode: str, ep_size: str, tokens: str, form: str = "bf16") -> float:
    """µs, of the latest committed predictions."""
    table = report_data.predictions(int(ep_size)).set_index(["mode", "tokens", "format"])
    return float(table.loc[(mode, int(tokens), form), "predicted_us"])


def of_four(modes: str, statistic: str) -> float:
    """Per cent by which the predictions for four GPUs missed: the worst `median` or `worst` of the modes named."""
    score = lm.score(two_cards.compared_of_four())
    return float(score.loc[score["mode"].isin(modes.split(",")), f"{statistic}_percent"].max())


def moved(mode: str) -> float:
    """Per cent by which the latest predictions differ from the first ones at most."""
    sizes = [report_data.moved(ep_size).groupby("mode")["size"].max()[mode] for ep_size in report_data.PREDICTED]
    return max(map(float, sizes))


def plan_gib(mode: str, ep_size: str, tokens: str) -> float:
    """GiB per rank of a mode's workspace, DeepSeek-V3's shape in bf16: computed, not measured."""
    moe = require_model("deepseek-v3")
    shape = {"hidden": moe.hidden, "experts": moe.experts, "top_k": moe.top_k}
    need = ExchangeShape(layout=Layout(dp=int(ep_size)), max_tokens=int(tokens), **shape)
    table = memory_table([need], gpu=require_gpu("h100")).set_index("mode")
    return float(table.loc[mode, "allocated_bytes"]) / 2**30


def floor(clock: str, phase: str, tokens: str) -> float:
    """µs of one-sided: the median at so many tokens, by clock and phase."""
    table = datasets.load_recorded(report_data.PAIR).query("mode == 'one_sided' and routing == 'uniform'")
    chosen = table[(table["clock"] == clock) & (table["phase"] == phase) & (table["tokens"] == int(tokens))]
    return float(records.summary(chosen)["p50_us"].iloc[0])


def _knob_default(mode: str, tokens: str) -> float:
    return float(_knobs().loc[(mode, "default", int(tokens)), "p50_us"])


@cache
def _medians(record: str) -> pd.Series:
    samples = datasets.load_recorded(record).query("clock == 'graph' and phase == 'round' and routing == 'uniform'")
    return records.summary(samples).set_index(["mode", "tokens"])["p50_us"]


@cache
def _knobs() -> pd.DataFrame:
    gains = tuning.gains(datasets.load_recorded("h100x2_nvlink_ep2_knobs", kind=tuning.KIND))
    return gains.set_index(["mode", "setting", "tokens"]).sort_index()


@cache
def _groups() -> pd.DataFrame:
    """Errors of points never in the fit, by group."""
    table = report_data.unseen_errors()
    one_gpu = (table["fabric"] == "shared_gpu") & (table["ranks_per_gpu"] == table["ep_size"])
    return table.assign(place=np.where(one_gpu, "one_gpu", table["fabric"]))


NUMBERS: Mapping[str, Callable[..., float]] = MappingProxyType(
    {
        function.__name__: function
        for function in (
            apart,
            bare,
            bare_apart,
            bias,
            error,
            floor,
            gain,
            left_by_bytes,
            left_out,
            limit,
            loss,
            median,
            moved,
            of_four,
            plan_gib,
            predicted,
            repeat,
            saved_us,
            times,
        )
    }
)
