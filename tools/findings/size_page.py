"""`docs/findings/changing-size.md`, with its numbers from `data/findings/`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tools.findings.results import machines, sizes
from tools.pages import markdown

LOADS = {"cure": "ragged", "cure, even loads": "even", "cure, decoding": "decoding"}
TEMPLATE = Path(__file__).parent / "templates" / "changing-size.md"


def page() -> str:
    table = sizes()
    gaps = table[table["what"] == "gap"]
    cured = table[table["cure"] != "none"]
    assert cured["wrong"].sum() == table["wrong_second"].sum() == 0
    decode = table[(table["what"] == "decoding") & (table["ep"] == 8)].iloc[0]
    last = {ep: rows.loc[rows["wrong"] > 0, "gap_us"].max() for ep, rows in gaps.groupby("ep")}
    pair = gaps[gaps["ep"] == 2]
    return TEMPLATE.read_text().format(
        machines="; ".join(machines("changing_size")),
        gaps=markdown(_shown(gaps)),
        safe_2=pair.loc[pair["gap_us"] > last[2], "gap_us"].min(),
        last_4=last[4],
        last_8=last[8],
        raggedness=markdown(_ragged(table)),
        others=markdown(_shown(table[table["what"].isin(["even loads", "same maximum", "decoding"])])),
        decode_8=round(100 * decode["wrong"] / decode["pairs"]),
        cured=f"{cured['pairs'].sum():,}",
        costs=markdown(_costs(table)),
        scatter=_scatter(table),
    )


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    order = table.sort_values(["ep", "what", "gap_us"])
    return pd.DataFrame(
        {
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
    order = back_to_back.sort_values(["ep", "others_share"])
    return _shown(order).drop(columns="between, µs").assign(share=order["others_share"].map("{:.1%}".format))


def _costs(table: pd.DataFrame) -> pd.DataFrame:
    chosen = table[table["what"].isin(list(LOADS))]
    wide = chosen.pivot_table(index=["ep", "cure"], columns="what", values="pair_us", sort=False)[list(LOADS)]
    return wide.rename(columns=LOADS).reset_index().rename(columns={"ep": "EP"})


def _scatter(table: pd.DataFrame) -> float:
    """Largest difference between two measurements of one case in a run, in percent of the smaller."""
    same = table[table["cure"] == "none"].groupby(["ep", "first", "second", "gap_us"])["pair_us"]
    return 100 * (same.max() / same.min() - 1).max()
