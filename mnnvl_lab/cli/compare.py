"""`compare`: two record files, point by point, decided from samples."""

from __future__ import annotations

import argparse

from mnnvl_lab.cli.arguments import add_command, add_figures, number_in, path_name

ALPHAS = (1e-12, 0.99)  # nearer to 0 or 1, 1 - alpha / 2 is no longer exact in float64
WORDS = """verdicts, of B against A:
  same      the samples could come from one distribution: exact Mann-Whitney U test, Holm's correction over all points
  faster, slower   they could not, by --alpha: the chance of even one false alarm in the whole table
  too few samples   even ten times slower could not be told from chance: measure with more samples
Two runs on a busy machine differ: repeat each before believing a verdict.
"""


def add(commands) -> None:
    parser = add_command(
        commands,
        "compare",
        help="same or different, point by point",
        description="Compares the points that two record files share, by their samples.",
        examples="""compare before.parquet after.parquet
compare before.parquet after.parquet --alpha 0.001
compare before.parquet after.parquet --out figures""",
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
    add_figures(parser, required=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from mnnvl_lab import records
    from mnnvl_lab.cli.figures import load
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


def _draw(table, args: argparse.Namespace) -> None:
    from mnnvl_lab.cli.figures import lines, save_all
    from mnnvl_lab.plots import comparison

    save_all(((f"comparison{name}", comparison(part)) for name, part in lines(table)), args.out, args.type)
