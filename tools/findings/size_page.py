"""`docs/findings/changing-size.md`, with its numbers from `data/findings/`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tools.findings.results import machines, sizes
from tools.pages import markdown

LOADS = {"cure": "ragged", "cure, even loads": "even", "cure, decoding": "decoding"}
SAME_LOADS = {"gap": "ragged", "even loads": "even", "decoding": "decoding"}
"""Cases without a cure and without other work between, whose rounds are those of a cure."""
TEMPLATE = Path(__file__).parent / "templates" / "changing-size.md"


def page() -> str:
    table = sizes()
    gaps = table[table["what"] == "gap"]
    cured = table[table["cure"] != "none"]
    assert cured["wrong"].sum() == table["wrong_second"].sum() == 0
    decode = table[(table["what"] == "decoding") & (table["ep"] == 8)].iloc[0]
    shared = gaps[(gaps["ep"] > 2) & (gaps["wrong"] > 0)].groupby(["card", "ep"])["gap_us"].max()
    return TEMPLATE.read_text().format(
        machines="; ".join(machines("changing_size")),
        gaps=markdown(_shown(gaps)),
        pairs="\n".join(_pairs(card, rows) for card, rows in gaps[gaps["ep"] == 2].groupby("card")),
        last_4=shared["H200", 4],
        last_8=shared["H200", 8],
        raggedness=markdown(_ragged(table)),
        others=markdown(_shown(table[table["what"].isin(["even loads", "same maximum", "decoding"])])),
        decode_8=round(100 * decode["wrong"] / decode["pairs"]),
        decode_card=decode["card"],
        cured="\n".join(_cured(card, rows) for card, rows in cured.groupby("card")),
        costs=markdown(_costs(table)),
        scatter=_scatter(table),
    )


def _pairs(card: str, gaps: pd.DataFrame) -> str:
    """Pairs of wrong rounds on two ranks, at the gaps that were measured and at no other."""
    wrong, right = gaps[gaps["wrong"] > 0], gaps[gaps["wrong"] == 0]
    assert (gaps.loc[gaps["gap_us"] == 0, "wrong"] == gaps.loc[gaps["gap_us"] == 0, "pairs"]).all()
    assert wrong["gap_us"].max() < right["gap_us"].min()
    seen = ", ".join(f"{row.wrong} of {row.pairs} at {row.gap_us:g} µs" for row in wrong.itertuples())
    return f"- {card}: {seen}; none at {', '.join(f'{gap:g}' for gap in right['gap_us'])} µs."


def _cured(card: str, cured: pd.DataFrame) -> str:
    tried = ", ".join(f"`{cure}`" for cure in cured["cure"].unique())
    return f"- {card}: {cured['pairs'].sum():,} pairs with {tried}."


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    order = table.sort_values(["card", "ep", "what", "gap_us"])
    return pd.DataFrame(
        {
            "card": order["card"],
            "EP": order["ep"],
            "first round": order["first"],
            "second round": order["second"],
            "between, µs": order["gap_us"].map("{:g}".format),
            "pairs": order["pairs"],
            "wrong pairs": order["wrong"],
            "wrong rows": order["wrong_rows"],
        }
    )


def _ragged(table: pd.DataFrame) -> pd.DataFrame:
    """Where the others have more, they are done later."""
    back_to_back = table[(table["gap_us"] == 0) & table["what"].isin(["gap", "raggedness"])]
    order = back_to_back.sort_values(["card", "ep", "others_share"])
    return _shown(order).drop(columns="between, µs").assign(share=order["others_share"].map("{:.1%}".format))


def _costs(table: pd.DataFrame) -> pd.DataFrame:
    """Time of a pair by cure; where a run of the cures had none without, that of the same rounds before it."""
    loads = table["what"].map(LOADS | SAME_LOADS)
    chosen = table.assign(load=loads)[loads.notna() & (table["gap_us"] == 0)]
    wide = chosen.pivot_table(
        index=["card", "ep", "cure"], columns="load", values="pair_us", sort=False, aggfunc="last"
    )[list(LOADS.values())]
    return wide.reset_index().rename(columns={"ep": "EP"})


def _scatter(table: pd.DataFrame) -> str:
    """Largest difference between measurements of one case in a run, in percent of the smaller, by card."""
    cases = table[table["cure"] == "none"].groupby(["card", "ep", "first", "second", "gap_us"])["pair_us"]
    percent = (100 * (cases.max() / cases.min() - 1))[cases.size() > 1]
    return " and ".join(f"{most:.0f} % on {card}" for card, most in percent.groupby("card").max().items())
