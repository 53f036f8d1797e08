"""`compare`: two record files, point by point, decided from samples."""

from __future__ import annotations

import argparse

from mnnvl_lab.cli.arguments import add_command, add_figures, number_in, path_name
from mnnvl_lab.cli.conditions import condition

ALPHAS = (1e-12, 0.99)  # nearer to 0 or 1, 1 - alpha / 2 is no longer exact in float64
FAILED = 3
"""Exit status where a point meets a condition: 1 and 2 are errors."""
WORDS = """verdicts, of B against A:
  same      the samples could come from one distribution: exact Mann-Whitney U test, Holm's correction over all points
  faster, slower   they could not, by --alpha: the chance of even one false alarm in the whole table
  too few samples   even ten times slower could not be told from chance: measure with more samples
Two runs on a busy machine differ: repeat each before believing a verdict.

--fail-if makes the exit status 3 where a point meets the condition: "slower by 5%", "faster by 5%", "different" or
"too few samples"; several may be given. A point fails only if its samples surely differ; exit status 0 otherwise, 2 if
the files cannot be compared.
"""


def add(commands) -> None:
    parser = add_command(
        commands,
        "compare",
        help="same or different, point by point",
        description="Compares the points that two record files share, by their samples.",
        examples="""compare before.parquet after.parquet
compare before.parquet after.parquet --alpha 0.001
compare before.parquet after.parquet --out figures
compare before.parquet after.parquet --fail-if "slower by 5%" """,
        words=WORDS,
    )
    parser.add_argument("a", metavar="A", type=path_name, help="record file of before")
    parser.add_argument("b", metavar="B", type=path_name, help="record file of after")
    parser.add_argument(
        "--alpha",
        type=number_in(*ALPHAS),
        default=0.01,
        metavar="P",
        help="chance of even one false alarm (default 0.01)",
    )
    parser.add_argument(
        "--fail-if",
        action="append",
        type=condition,
        default=[],
        metavar="CONDITION",
        help='exit with 3 if a point is so, such as "slower by 5%%"',
    )
    add_figures(parser, required=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from mnnvl_lab import records
    from mnnvl_lab.plots.selection import load
    from mnnvl_lab.records.compare import VERDICTS
    from mnnvl_lab.records.schema import SIZES

    a, b = load(args.a), load(args.b)
    table = records.compare(a, b, alpha=args.alpha)
    varying = [
        name
        for name in records.POINT_COLUMNS
        if name in ("mode", "phase", "tokens") or (name not in SIZES and table[name].nunique() > 1)
    ]
    shown = table[[*varying, "p50_us_a", "p50_us_b", "change_percent", "p_value", "verdict"]]
    print(shown.to_string(index=False, float_format="{:.4g}".format))
    counts = table["verdict"].value_counts()
    print(", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS))
    for name, only in (("A", table.attrs["only_a"]), ("B", table.attrs["only_b"])):
        if only:
            print(f"{only} points of {name} alone, not compared")
    devices = [records.provenance_of(side).get("device") for side in (a, b)]
    if devices[0] != devices[1]:
        print(f"note: A was measured on {devices[0]}, B on {devices[1]}")
    if args.out is not None:
        _draw(table, args)
    return _failed(table, args.fail_if)


def _failed(table, conditions) -> int:
    """Say which points meet which condition: 3 if any does, else 0."""
    status = 0
    for each in conditions:
        points = each.points(table)
        for row in points.to_dict("records"):
            point = f"{row['mode']}, {row['phase']}, {row['clock']} clock, {row['format']}, {row['routing']}"
            change = f"{row['p50_us_a']:.4g} to {row['p50_us_b']:.4g} µs ({row['change_percent']:+.1f} %)"
            print(f"FAIL {each.words}: {point}, {row['tokens']} tokens per rank: {change}")
        print(f"{len(points)} of {len(table)} points: {each.words}")
        status = FAILED if len(points) else status
    return status


def _draw(table, args: argparse.Namespace) -> None:
    from mnnvl_lab.cli.figures import save_all
    from mnnvl_lab.plots import comparison
    from mnnvl_lab.plots.selection import lines

    save_all(((f"comparison{name}", comparison(part)) for name, part in lines(table)), args.out, args.type)
