"""`docs/findings/two-sided-prepare.md`, with its numbers from `data/findings/`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mnnvl_lab.workspace.two_sided import fills_last_step
from tools.findings.results import machines, poisson_interval, prepares
from tools.findings.two_sided_prepare import CONDITION, MENDED
from tools.pages import markdown

TEMPLATE = Path(__file__).parent / "templates" / "two-sided-prepare.md"


def page() -> str:
    table = prepares()
    stock, mended = table[table["kernel"] == "0.7.2"], table[table["kernel"] == "mended"]
    full = stock[stock["full_pairs"] > 0]
    pair = full[(full["ep"] == 2) & (full["top_k"] == 8)]
    noisy, quiet = pair[pair["traffic"] == "link"], full[(full["ep"] == 2) & (full["traffic"] != "link")]
    low, high = (1e5 * bound for bound in poisson_interval(noisy["lost"].sum(), noisy["prepares"].sum()))
    assert quiet["lost"].sum() == mended["lost"].sum() == 0
    assert stock.loc[stock["full_pairs"] == 0, "lost"].sum() == 0
    mended_noisy = mended.loc[mended["traffic"] == "link", "prepares"].sum()
    rate = noisy["lost"].sum() / noisy["prepares"].sum()
    return TEMPLATE.read_text().format(
        machines="; ".join(machines("two_sided_prepare")),
        source="../../tools/findings/two_sided_prepare.py",
        found="\n".join(_found(row) for row in noisy.to_dict("records")),
        boundary_8=_boundary(8),
        boundary_4=_boundary(4),
        boundary_6=_boundary(6),
        first_8=next(n for n in range(9000) if fills_last_step(n, top_k=8, experts=256)),
        controls=f"{stock.loc[stock['full_pairs'] == 0, 'prepares'].sum():,}",
        table=markdown(_shown(table)),
        quiet=f"{quiet['prepares'].sum():,}",
        noisy_lost=noisy["lost"].sum(),
        noisy=f"{noisy['prepares'].sum():,}",
        noisy_rate=f"{1e5 * rate:.0f} in 100,000 (95 % interval {low:.0f} to {high:.0f})",
        old=CONDITION,
        new=MENDED,
        mended=f"{mended['prepares'].sum():,}",
        mended_noisy=f"{mended_noisy:,}",
        expected=f"{rate * mended_noisy:.0f}",
    )


def _boundary(top_k: int) -> str:
    """The first two stretches of rows to a target that fill the last step."""
    full = [n for n in range(12_000) if fills_last_step(n, top_k=top_k, experts=256)]
    starts = [n for n in full if n - 1 not in full][:2]
    ends = [n for n in full if n + 1 not in full][:2]
    return ", ".join(f"{low} to {high}" for low, high in zip(starts, ends, strict=True)) + ", ..."


def _found(row: dict) -> str:
    first = row["first_wrong"]
    return (
        f"- {row['tokens']} tokens: {row['lost']} steps lost in {row['prepares']:,} calls. Left alone, the round after "
        f"{first['after_prepares']:,} calls\n  had {first['wrong_rows']} of {first['rows']} rows wrong, from its own "
        f"rank, and so had {row['later_wrong']} of the next 10 rounds."
    )


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    order = table.sort_values(["kernel", "ep", "top_k", "tokens", "traffic"])
    return pd.DataFrame(
        {
            "kernel": order["kernel"],
            "EP": order["ep"],
            "top-k": order["top_k"],
            "tokens": order["tokens"],
            "rows to a target": order["least_rows"].astype(str) + " to " + order["most_rows"].astype(str),
            "full pairs": order["full_pairs"],
            "beside": order["traffic"],
            "calls": order["prepares"],
            "lost to itself": order["lost_to_itself"],
            "lost to others": order["lost_to_peers"],
            "first wrong round": [_first(row) for row in order.to_dict("records")],
        }
    )


def _first(row: dict) -> str:
    if row["first_wrong"] is None:
        return f"none in {row['until']} calls"
    first = row["first_wrong"]
    return f"after {first['after_prepares']} calls: {first['wrong_rows']} of {first['rows']} rows"
