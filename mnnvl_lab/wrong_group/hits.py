"""Which layouts a workspace over the DP group hits: arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from mnnvl_lab.layout import Layout


def affected(layouts: Iterable[Layout]) -> pd.DataFrame:
    """Which layouts a workspace over the DP group hits; nothing is run.

    Returns:
        One row a layout: its sizes, `dp_size` and `ep_size`, ranks of either group; `same_group`, whether the two
        coincide; `exchanges`, whether vLLM would call an all-to-all at all (`fused_moe/config.py`,
        `use_all2all_kernels`: DP or PCP above 1); and `hit`: it would, over a group that is too small.
    """
    return pd.DataFrame([_affected(layout) for layout in layouts])


def _affected(layout: Layout) -> dict[str, object]:
    same, exchanges = layout.groups("dp") == layout.groups("ep"), layout.dp > 1 or layout.pcp > 1
    sizes = {"dp_size": layout.dp, "ep_size": layout.ep_size}
    return axes_of(layout) | sizes | {"same_group": same, "exchanges": exchanges, "hit": exchanges and not same}


def axes_of(layout: Layout) -> dict[str, int]:
    """Sizes of a layout, as columns."""
    return {name: getattr(layout, name) for name in ("tp", "dp", "pcp", "pp")}
