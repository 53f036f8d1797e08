"""`docs/findings/two-sided-prepare.md`, with its numbers from `data/findings/`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mnnvl_lab.workspace.two_sided import fills_last_step
from tools.findings.results import PER, lost_steps, machines, prepares, wrong_rounds
from tools.findings.two_sided_prepare import (
    CHECKS_AFTER_THE_FIRST_WRONG,
    CONDITION,
    MENDED,
    PREPARES_PER_CHECK,
)
from tools.pages import markdown

TEMPLATE = Path(__file__).parent / "templates" / "two-sided-prepare.md"
GROUP = ["card", "ep", "last_step", "traffic"]


def page() -> str:
    table, lost, left = prepares(), lost_steps(), wrong_rounds()
    stock = table[table["kernel"] == "0.7.2"]
    full = stock[stock["full_pairs"] > 0]
    pair = full[(full["ep"] == 2) & (full["top_k"] == 8)]
    _check(table, pair)
    return TEMPLATE.read_text().format(
        machines="; ".join(machines("two_sided_prepare")),
        source="../../tools/findings/two_sided_prepare.py",
        found="\n".join(_found(row) for row in pair[pair["traffic"] == "link"].to_dict("records")),
        boundary_8=_boundary(8),
        boundary_4=_boundary(4),
        boundary_6=_boundary(6),
        first_8=next(n for n in range(9000) if fills_last_step(n, top_k=8, experts=256)),
        controls=_by_card(stock[stock["full_pairs"] == 0], "prepares"),
        table=markdown(_shown(table)),
        rates=markdown(_compared(lost, left)),
        every=PREPARES_PER_CHECK,
        old=CONDITION,
        new=MENDED,
        **_afterwards(pair[pair["first_wrong"].notna()]),
        **_beside(pair, full, lost.set_index(GROUP), left.set_index(GROUP)),
        **_change(table[table["kernel"] == "mended"], lost.set_index(GROUP)),
    )


def _check(table: pd.DataFrame, pair: pd.DataFrame) -> None:
    """What the page says in words."""
    sound = table[(table["full_pairs"] == 0) | (table["kernel"] == "mended") | (table["ep"] == 4)]
    assert _events(sound) == (0, 0)
    assert _events(pair.query("card == 'H200' and traffic != 'link'")) == (0, 0)
    quiet, link = pair.query("card == 'H100' and traffic == 'none'"), pair.query("traffic == 'link'")
    assert _events(quiet) == (0, len(quiet))
    assert link["lost"].gt(0).all()
    assert link["first_wrong"].notna().all()
    assert all(one["source"] == one["rank"] for one in pair["first_wrong"].dropna())


def _events(rows: pd.DataFrame) -> tuple[int, int]:
    """Steps lost, and cases with a wrong round."""
    return rows["lost"].sum(), rows["first_wrong"].notna().sum()


def _by_card(rows: pd.DataFrame, column: str) -> str:
    """`99,400 calls on H100 and 484,600 on H200`."""
    first, *others = (f"{total:,}" for total in rows.groupby("card")[column].sum())
    cards = sorted(rows["card"].unique())
    return _listed(f"{n} on {card}" for n, card in zip([f"{first} calls", *others], cards, strict=True))


def _listed(parts: Iterable[object]) -> str:
    *some, last = map(str, parts)
    return f"{', '.join(some)} and {last}" if some else last


def _boundary(top_k: int) -> str:
    """The first two stretches of rows to a target that fill the last step."""
    full = [n for n in range(12_000) if fills_last_step(n, top_k=top_k, experts=256)]
    starts = [n for n in full if n - 1 not in full][:2]
    ends = [n for n in full if n + 1 not in full][:2]
    return ", ".join(f"{low} to {high}" for low, high in zip(starts, ends, strict=True)) + ", ..."


def _found(row: dict) -> str:
    first = row["first_wrong"]
    return (
        f"- {row['card']}, {row['tokens']} tokens: {row['lost']} steps lost in {row['prepares']:,} calls. Left alone, "
        f"the round after {first['after_prepares']:,} calls\n  had {first['wrong_rows']} of {first['rows']} rows "
        f"wrong, from its own rank, and so had {row['later_wrong']} of the next {CHECKS_AFTER_THE_FIRST_WRONG} rounds."
    )


def _afterwards(wrong: pd.DataFrame) -> dict[str, object]:
    """What became of the rounds after the first wrong one, on pairs: all wrong, or right again by themselves."""
    stays = wrong["later_wrong"] == CHECKS_AFTER_THE_FIRST_WRONG
    assert (stays == (wrong["head_left"] > 0)).all()
    return {
        "wrong_cases": len(wrong),
        "stays": stays.sum(),
        "checks": CHECKS_AFTER_THE_FIRST_WRONG,
        "recovers": len(wrong) - stays.sum(),
        "recovers_after": _listed(sorted(wrong.loc[~stays, "later_wrong"])),
        "recovers_tokens": _listed(sorted(wrong.loc[~stays, "tokens"].unique())),
    }


def _compared(lost: pd.DataFrame, left: pd.DataFrame) -> pd.DataFrame:
    """Both rates of the cases with full steps, beside each other."""
    both = lost.merge(left, on=GROUP, suffixes=("", "_alone")).query("last_step == 'full'")
    return pd.DataFrame(
        {
            "card": both["card"],
            "EP": both["ep"],
            "beside": both["traffic"],
            "calls": both["calls"],
            "steps lost": both["lost"],
            f"per {PER:,}": [_rate(row) for row in both.to_dict("records")],
            "cases left alone": both["cases"],
            "their calls": both["calls_alone"],
            "cases with a wrong round": both["wrong"],
            f"first wrong rounds per {PER:,}": [_rate(row, "_alone") for row in both.to_dict("records")],
        }
    )


def _rate(row: dict | pd.Series, suffix: str = "") -> str:
    rate, low, high = (row[f"{name}{suffix}"] for name in ("rate", "low", "high"))
    return f"{rate:.1f} ({low:.1f} to {high:.1f})"


def _beside(pair: pd.DataFrame, full: pd.DataFrame, lost: pd.DataFrame, left: pd.DataFrame) -> dict[str, object]:
    """What was lost, and went wrong, with nothing beside, beside copies and beside writes over the link."""
    quiet, copies, shared = ("H100", 2, "full", "none"), ("H100", 2, "full", "copies"), ("H200", 8, "full", "none")
    still = [("H200", 2, "full", traffic) for traffic in ("none", "copies")]
    alone = pair.query("card == 'H100' and traffic == 'none'")["first_wrong"]
    few = full[full["top_k"] != 8]
    assert _events(few) == (0, 0)
    assert set(few["card"] + few["traffic"]) == {"H200none"}
    return {
        "quiet_calls": f"{lost.loc[quiet, 'calls']:,}",
        "quiet_cases": left.loc[quiet, "cases"],
        "quiet_after": _listed(f"{one['after_prepares']:,}" for one in alone),
        "copies_lost": lost.loc[copies, "lost"],
        "copies_calls": f"{lost.loc[copies, 'calls']:,}",
        "copies_wrong": left.loc[copies, "wrong"],
        "copies_cases": left.loc[copies, "cases"],
        "still_calls": f"{lost.loc[still, 'calls'].sum():,}",
        "still_alone": f"{left.loc[still, 'calls'].sum():,}",
        "few_calls": f"{few['prepares'].sum():,}",
        "link_rates": _listed(f"{_rate(lost.loc[(card, 2, 'full', 'link')])} on {card}" for card in ("H100", "H200")),
        "shared_lost": lost.loc[("H200", 8, "full", "copies"), "lost"],
        "shared_calls": f"{lost.loc[shared, 'calls']:,}",
        "shared_alone": f"{left.loc[shared, 'calls']:,}",
    }


def _change(mended: pd.DataFrame, lost: pd.DataFrame) -> dict[str, str]:
    """What the mended kernel would have lost at the rate of its card."""
    (card,) = mended["card"].unique()
    noisy = mended.loc[mended["traffic"] == "link", "prepares"].sum()
    stock = lost.loc[(card, 2, "full", "link")]
    return {
        "mended_card": card,
        "mended": f"{mended['prepares'].sum():,}",
        "mended_alone": f"{mended['until'].sum():,}",
        "mended_noisy": f"{noisy:,}",
        "expected": f"{stock['lost'] / stock['calls'] * noisy:.0f}",
    }


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    order = table.sort_values(["kernel", "card", "ep", "top_k", "tokens", "traffic"])
    return pd.DataFrame(
        {
            "kernel": order["kernel"],
            "card": order["card"],
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
