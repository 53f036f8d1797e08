"""Draw the figures that the README and the pages of `docs/` show, from the recorded data.

    python -m tools.figures

They go to `docs/figures/`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import matplotlib

from mnnvl_lab import datasets, plots
from tools.arguments import run_tool, tool_parser
from tools.pages import DOCS, save_figure


def latency_on_two_h100s():
    """One-sided, two-sided and the NCCL baselines beside the bound of the link."""
    table = datasets.load_recorded("h100x2_nvlink_ep2_bf16")
    rounds = table.query("clock == 'graph' and phase == 'round' and routing == 'uniform'")
    return plots.latency(rounds, x="tokens", hue="mode", bounds=plots.lower_bounds(rounds))


def main(arguments: Sequence[str] | None = None) -> None:
    tool_parser("tools.figures", __doc__).parse_args(arguments)
    matplotlib.use("Agg")
    for draw in (latency_on_two_h100s,):
        print(save_figure(draw(), draw.__name__).relative_to(DOCS.parent))


if __name__ == "__main__":
    sys.exit(run_tool(main))
