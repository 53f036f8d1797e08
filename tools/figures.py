"""Draw the figures that the README and the pages of `docs/` show, from the recorded data.

    python -m tools.figures

They go to `docs/figures/`.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

from mnnvl_lab import plots, records

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"


def latency_on_two_h100s():
    """One-sided, two-sided and the NCCL baselines beside the bound of the link."""
    table = records.load(ROOT / "data" / "h100x2_nvlink_ep2_bf16.parquet")
    rounds = table.query("clock == 'graph' and phase == 'round' and routing == 'uniform'")
    return plots.latency(rounds, x="tokens", hue="mode", bounds=plots.limits(rounds))


def main() -> None:
    matplotlib.use("Agg")
    FIGURES.mkdir(parents=True, exist_ok=True)
    for draw in (latency_on_two_h100s,):
        path = FIGURES / f"{draw.__name__}.png"
        draw().figure.savefig(path, dpi=144, bbox_inches="tight")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
