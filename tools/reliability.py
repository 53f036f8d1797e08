"""Make docs/reliability.md out of the kept campaigns, running first those that this machine has not run.

python -m tools.reliability            run what is missing on this processor, then write the page
python -m tools.reliability --share 1  run everything anew, in full
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mnnvl_lab.faults.broken_protocols import VARIANTS
from mnnvl_lab.faults.invalid_inputs import INVALID_INPUTS
from tools import soak
from tools.arguments import SHARE, run_tool, tool_parser
from tools.endurance import is_wrong
from tools.pages import DOCS, markdown

PAGE = DOCS / "reliability.md"
MEANING = {
    "kills": "a rank dies in a random phase: named with phase and cause, nothing left, next call right",
    "hangs": "a rank stays away: named with whom it keeps waiting, next call right",
    "fuzz": "random rounds, most with a spoiled one between: right to the last bit, or refused by all alike",
    "delays": "random pauses wherever order matters, on 1 to 16 ranks of two cores: no wrong row",
    "endurance": "fresh routing, token counts, delays and masks, every round compared on the device",
    "variants": "protocols with a step missing: caught, and the sound ones pass",
}
SECONDS = {
    "kills": "to an error that names it",
    "hangs": "beyond the limit of the round, opening and a right round before it included",
}
INTRODUCTION = """# Reliability

Faults made on purpose, and what became of them. A campaign stops at the first fault that is not survived, so every
fault counted here was. Made by `python -m tools.reliability` from the files in `data/reliability/`; `python -m
tools.soak` runs the campaigns, also on GPUs (`--fabric nvlink --ranks 2`).
"""
ENDURANCE_TEXT = """## Endurance

Rounds with fresh routing; token counts, delays and masks are drawn anew for each block of rounds, which is replayed.
What came, every row, id, weight and sum is compared on the device (`python -m tools.soak endurance`). Rounds are those
of the rank that took part in most.
"""
HAZARDS_TEXT = """## Input that never reaches a kernel

What the kernels of FlashInfer 0.7.2 would do with it (read in their sources). All of it is refused before a byte is
sent, by all ranks in the same words. `tests/test_fuzz.py` tries each in both modes, and a right round after it.
"""
VARIANTS_TEXT = """## Races that the tests can see

The stress tests pass on the host transports. They would mean little if they passed on anything: these protocols, each
with one step missing, are caught (`tests/test_races.py`). Each is an exercise:
`mnnvl_lab.faults.broken_protocols.VARIANTS`.
"""
LIMITS_TEXT = """## Limits

- A rank that holds Python's lock inside C code cannot be asked for its flags. Its stack is read all the same, and its
  peers' flags tell whom they wait for.
- A round that has not moved for 5 s (`Ranks.run(round_limit_s=...)`) while a rank waits inside it, and the one that it
  waits for uses no processor time, is taken for a hang. A rank lost in a busy loop looks like one at work: there the
  limit of the whole call holds (`timeout_s`).
- Ranks on other machines (SSH, Slurm) are seen through ipyparallel's heartbeat alone: their end is noticed in seconds,
  but neither flags nor stacks are read.
- With the two-sided kernels, a rank that was sent nothing and sends nothing shows no trace in the FIFOs: what it said
  last stands in.
- A rank whose CUDA context is lost, or whose kernel still spins half a second after its function failed, is replaced:
  nothing but the end of its process frees the GPU.
- Two-sided kernels have no timeout and one-sided ones give up after about five minutes: until then only killing the
  process frees the GPU, and that is what happens.
"""


def table_of(campaign: str, rows: list[dict]) -> dict[str, object]:
    """One line of the summary."""
    frame = pd.DataFrame(rows)
    seconds = frame["seconds"] if campaign in SECONDS else None
    return {
        "faults": len(frame),
        "survived": len(frame) - sum(map(is_wrong, rows)),
        "rounds": _rounds(frame) if "rounds" in frame else "",
        "median, s": "" if seconds is None else f"{seconds.median():.2f}",
        "worst, s": "" if seconds is None else f"{seconds.max():.2f}",
        "what": MEANING[campaign] + (f"; seconds {SECONDS[campaign]}" if campaign in SECONDS else ""),
    }


def _rounds(frame: pd.DataFrame) -> int:
    """Right rounds; an invalid input that is refused while opening comes before any."""
    before_any = {invalid_input.name for invalid_input in INVALID_INPUTS if invalid_input.exchange}
    return int(frame.loc[~frame["fault"].isin(before_any), "rounds"].sum())


def results(folder: Path) -> dict[tuple[str, str], dict]:
    """Kept campaigns by fabric and name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        fabric, _, name = path.stem.rpartition("_")
        found[fabric, name] = json.loads(path.read_text())
    return found


def summary(kept: dict[tuple[str, str], dict]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"fabric": fabric, "campaign": name} | table_of(name, one["rows"]) for (fabric, name), one in kept.items()]
    )


def deaths(kept: dict[tuple[str, str], dict]) -> pd.DataFrame:
    """Kills and hangs by fault: how many, and how soon they were named."""
    rows = [row | {"fabric": f} for (f, name), one in kept.items() if name in SECONDS for row in one["rows"]]
    groups = pd.DataFrame(rows).groupby(["fabric", "fault"])["seconds"]
    return groups.agg(**{"tried": "size", "median, s": "median", "worst, s": "max"}).reset_index()


def endurance(kept: dict[tuple[str, str], dict]) -> pd.DataFrame:
    """One row per transport: rounds, tokens of all ranks, and what was wrong."""
    names = {"fault": "rounds of", "ranks": "EP", "rounds": "rounds", "tokens": "tokens", "rounds_per_s": "rounds/s"}
    rows = [
        {"fabric": fabric.split("_ep")[0], **{new: row[old] for old, new in names.items()}}
        | {"wrong": sum(row["wrong"].values()), "device": one["provenance"]["device"]}
        for (fabric, name), one in kept.items()
        if name == "endurance"
        for row in one["rows"]
    ]
    return pd.DataFrame(rows).replace({"rounds of": r"^endurance of "}, {"rounds of": ""}, regex=True)


def page(kept: dict[tuple[str, str], dict]) -> str:
    invalid_inputs = pd.DataFrame(
        [{"input": h.name, "the kernels": h.unchecked, "modes": ", ".join(h.modes)} for h in INVALID_INPUTS]
    )
    variants = pd.DataFrame(
        [{"missing step": v.title, "mode": v.transport.mode, "why": v.explanation} for v in VARIANTS]
    )
    origin = [
        f"- {fabric}, {name}: {one['provenance']['device']}, {one['provenance']['created_at'][:10]}"
        for (fabric, name), one in kept.items()
    ]
    parts = [
        INTRODUCTION,
        markdown(summary(kept)),
        "\n".join(origin),
        "## Deaths and absences",
        markdown(deaths(kept), digits=2),
        ENDURANCE_TEXT,
        markdown(endurance(kept), digits=0),
        HAZARDS_TEXT,
        markdown(invalid_inputs),
        VARIANTS_TEXT,
        markdown(variants),
        LIMITS_TEXT,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = tool_parser("tools.reliability", __doc__)
    parser.add_argument(
        "--share", type=SHARE, metavar="X", help="run all campaigns on this processor anew, this share of them"
    )
    options = parser.parse_args(arguments)
    kept = results(soak.OUT)
    due = [name for name in soak.CAMPAIGNS if options.share or ("host", name) not in kept]
    if due:
        soak.main([*due, "--share", str(options.share or 1.0)])
    PAGE.write_text(page(results(soak.OUT)))
    print(PAGE.relative_to(DOCS.parent))
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
