"""Write the pages and figures of `docs/findings/` from the kept results."""

from __future__ import annotations

import matplotlib

from tools.findings import prepare_page, results, size_page
from tools.findings.figures import draw_prepares, draw_sizes
from tools.pages import DOCS, save_figure

PAGES = {"two-sided-prepare.md": prepare_page.page, "changing-size.md": size_page.page}


def main(arguments: list[str]) -> int:
    matplotlib.use("agg")
    save_figure(draw_prepares(results.prepares(), _device("two_sided_prepare")), "two_sided_prepare")
    save_figure(draw_sizes(results.sizes(), _device("changing_size")), "changing_size")
    (DOCS / "findings").mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (DOCS / "findings" / name).write_text(page())
        print(f"docs/findings/{name}")
    return 0


def _device(name: str) -> str:
    return "; ".join(dict.fromkeys(line.split(",")[0] for line in results.machines(name)))
