"""Print where the time of a one-sided round goes on the pair, beside bare kernels that move the same bytes.

    python -m tools.link_budget

`tools.latency_report` puts the same tables into `docs/latency.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pandas as pd

from mnnvl_lab import datasets, records
from mnnvl_lab.analysis import latency_model as lm
from mnnvl_lab.link_rates import limits
from tools.arguments import run_tool, tool_parser
from tools.pages import markdown

BARE = {"dispatch": "kernel_stores", "combine": "kernel_loads"}
FEW, MANY = 1024, 4096
"""Between these counts of tokens the round is a line: the link is busy throughout."""


def wire_bytes(phase: str, *, tokens: int) -> float:
    """Over the link of one GPU of the pair, one direction."""
    shape = {"hidden": 7168, "experts": 256, "top_k": 8}
    work = lm.work_of(lm.Point(mode="one_sided", ep_size=2, tokens=tokens, payload_in_workspace=True, **shape))
    return getattr(work, f"{phase}_link_bytes")


def bare_rates() -> dict[str, float]:
    """GB/s of each phase's bare kernel in one direction, both busy."""
    rates = limits(datasets.load_recorded("h100x2_nvlink_links", kind="links")).set_index(["quantity", "direction"])
    return {phase: rates.loc[(name, "both_ways"), "gigabytes_per_s"] / 2 for phase, name in BARE.items()}


def round_us(samples: pd.DataFrame) -> pd.Series:
    """Median of a one-sided round by tokens, graph clock, uniform routing."""
    chosen = samples.query("mode == 'one_sided' and routing == 'uniform' and clock == 'graph' and phase == 'round'")
    return records.summary(chosen).set_index("tokens")["p50_us"]


def parts(samples: pd.DataFrame) -> dict[str, float]:
    """Of a round of `MANY` tokens: µs (`round`, `dispatch`, `combine`, `rest`, `fixed`, `one`, `launches`, `flags`,
    `further`, `further_bare`), MB and GB/s of each phase, and `rate`: per cent of the bare rate beyond the fixed cost.
    """
    seen_us, rates = round_us(samples), bare_rates()
    bytes_of = {phase: wire_bytes(phase, tokens=MANY) for phase in BARE}
    bare_us = {phase: bytes_of[phase] / rates[phase] / 1e3 for phase in BARE}
    slope_us = (seen_us[MANY] - seen_us[FEW]) / (MANY - FEW)
    floors_us = limits(datasets.load_recorded("h100x2_nvlink_links", kind="links")).set_index("quantity")["latency_us"]
    fixed_us, all_bare_us = seen_us[MANY] - MANY * slope_us, sum(bare_us.values())
    return {
        **bare_us,
        **{f"{phase}_mb": size / 1e6 for phase, size in bytes_of.items()},
        **{f"{phase}_rate": rate for phase, rate in rates.items()},
        "round": seen_us[MANY],
        "rest": seen_us[MANY] - all_bare_us,
        "fixed": fixed_us,
        "slower": MANY * slope_us - all_bare_us,
        "unexplained": fixed_us - 4 * floors_us["launch"] - floors_us["flag_round_trip"],
        "one": seen_us[1],
        "launches": 4 * floors_us["launch"],
        "flags": floors_us["flag_round_trip"],
        "further": 1e3 * slope_us,
        "further_bare": 1e3 * all_bare_us / MANY,
        "rate": 100 * all_bare_us / (MANY * slope_us),
        **_isolated(seen_us[MANY], rates),
    }


def _isolated(round_us: float, rates: dict[str, float]) -> dict[str, float]:
    """Of the phases by the kernel clock: their sum, what it is beyond the round, and combine's share of bare loads."""
    spans = {phase: _span(phase) for phase in BARE}
    per_token_us = (spans["combine"][MANY] - spans["combine"][FEW]) / (MANY - FEW)
    rate = wire_bytes("combine", tokens=MANY) / MANY / per_token_us / 1e3
    summed_us = sum(span[MANY] for span in spans.values())
    pulled_us = wire_bytes("combine", tokens=MANY) * (1 / rate - 1 / rates["combine"]) / 1e3
    return {
        "isolated": summed_us,
        "overlapped": summed_us - round_us,
        "pull_share": 100 * rate / rates["combine"],
        "pull_us": pulled_us,
    }


def budget(samples: pd.DataFrame) -> str:
    """A round of `MANY` tokens, its bytes by bare kernels, and what that leaves."""
    p = parts(samples)
    rows = [
        (f"a round of {MANY} tokens", p["round"]),
        *((f"{n}: {p[f'{n}_mb']:.1f} MB at a bare kernel's {p[f'{n}_rate']:.1f} GB/s", p[n]) for n in BARE),
        ("what that leaves", p["rest"]),
        (f"the line through {FEW} and {MANY} tokens, at none", p["fixed"]),
        ("a round of one token", p["one"]),
        ("four launches", p["launches"]),
        ("two flags, one way each: a round trip", p["flags"]),
        ("1000 further tokens, on that line", p["further"]),
        ("1000 further tokens, by bare kernels", p["further_bare"]),
    ]
    return markdown(pd.DataFrame(rows, columns=["one-sided, EP 2, graph clock", "µs"]), digits=1)


def remainder() -> str:
    """Fixed cost and cost of a further byte of each phase by the kernel clock, beside what bare kernels reach."""
    rates = bare_rates()
    return markdown(pd.DataFrame([_remainder(p, _span(p), rates[p]) for p in BARE]), digits=1)


def _span(phase: str) -> pd.Series:
    """Median of a one-sided phase by tokens, kernel clock, uniform routing."""
    spans = datasets.load_recorded("h100x2_nvlink_ep2_kernel")
    chosen = spans.query("mode == 'one_sided' and routing == 'uniform' and phase == @phase")
    return records.summary(chosen).set_index("tokens")["p50_us"]


def _remainder(phase: str, seen_us: pd.Series, bare_gigabytes_per_s: float) -> dict[str, object]:
    per_token_us = (seen_us[MANY] - seen_us[FEW]) / (MANY - FEW)
    row_bytes = wire_bytes(phase, tokens=MANY) / MANY
    return {
        "phase": phase,
        f"at {MANY} tokens (µs)": seen_us[MANY],
        "at 1 (µs)": seen_us[1],
        f"a further token, {FEW} to {MANY} (ns)": 1e3 * per_token_us,
        "that is (GB/s)": row_bytes / per_token_us / 1e3,
        "bare kernel, both ways busy (GB/s)": bare_gigabytes_per_s,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    tool_parser("tools.link_budget", __doc__).parse_args(arguments)
    print(budget(datasets.load_recorded("h100x2_nvlink_ep2_bf16")), remainder(), sep="\n\n")


if __name__ == "__main__":
    sys.exit(run_tool(main))
