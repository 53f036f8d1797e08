"""What runtime max, padding and capacity cost on `host`: a round of a server that is larger than its tokens.

`python -m benchmarks.server_rounds`. One of the three varies at a time. The phase `experts` reads and writes every row
of the received buffer once, R x runtime max of them in one_sided, filled or not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pandas as pd

from mnnvl_lab import records
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Sampling, Sweep
from mnnvl_lab.measure.run import run
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.routing import Padding

LAYOUT = Layout(dp=2)
TOKENS, CAPACITY = 64, 4096
FULLEST = 1024
"""Rows of every rank where batches are padded to the fullest one's."""


def sweeps(sampling: Sampling) -> Iterator[tuple[str, Sweep]]:
    """Name of the column that varies, and the sweep."""
    shape = {"hidden": 4096, "experts": 64, "top_k": 8, "layouts": LAYOUT, "modes": "one_sided", "sampling": sampling}
    ragged = {"tokens": ((FULLEST, TOKENS),), "max_tokens": CAPACITY, "runtime_max_tokens": FULLEST}
    extra = (0, FULLEST - TOKENS)
    paddings = [None, *(Padding(rows=extra, invalid_ids=handling) for handling in ("drop", "as_kernel"))]
    yield (
        "runtime_max_tokens",
        Sweep(**shape, tokens=TOKENS, runtime_max_tokens=[64, 256, 1024, 4096], max_tokens=CAPACITY),
    )
    yield "invalid_ids", Sweep(**shape, **ragged, padding=[*paddings, Padding(rows=extra, expert_id=0)])
    yield "max_tokens", Sweep(**shape, tokens=TOKENS, runtime_max_tokens=TOKENS, max_tokens=[64, 256, 1024, 4096])


def shown(table: pd.DataFrame, varying: str) -> str:
    """Medians in microseconds, a row per point and a column per phase."""
    by = ["padding_id", varying] if varying == "invalid_ids" else [varying]
    medians = records.summary(table, by=[*by, "phase"])
    return medians.pivot(index=by, columns="phase", values="p50_us").round(0).to_string()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--out", metavar="FILE", help="also save the samples, Parquet")
    args = parser.parse_args()
    sampling = Sampling(min_samples=args.samples, max_samples=args.samples, budget_s=2.0)
    tables = []
    with Ranks(LAYOUT) as ranks:
        for varying, sweep in sweeps(sampling):
            tables.append(run(sweep, ranks=ranks))
            print(shown(tables[-1], varying), end="\n\n")
    if args.out:
        table = records.join(tables)
        records.save(table.drop_duplicates([*records.POINT_COLUMNS, "rank", "iteration"]), args.out)


if __name__ == "__main__":
    main()
