"""Tables in, Axes out.

Every function takes a tidy table and names of its columns, draws into `ax` or a new figure, and returns the Axes.
Labels and units come from the column registry; device, fabric and clock stand below the figure. Nothing is shown, saved
or configured: that is the caller's.
"""

from mnnvl_lab.plots.bounds import lower_bounds
from mnnvl_lab.plots.compare import comparison, context, fastest, prediction_errors
from mnnvl_lab.plots.interleaving import interleaving
from mnnvl_lab.plots.layout import rank_grid, waits
from mnnvl_lab.plots.lines import latency, memory
from mnnvl_lab.plots.mapping import mapped_rows
from mnnvl_lab.plots.memory_ledger import growth, memory_ledger
from mnnvl_lab.plots.per_rank import parts, per_rank
from mnnvl_lab.plots.predictions import left_out_errors, predictions, simulated_round
from mnnvl_lab.plots.regions import region_map
from mnnvl_lab.plots.samples import every_sample, others_wait, timeline
from mnnvl_lab.plots.save import save
from mnnvl_lab.plots.shown import alt_text, shown
from mnnvl_lab.plots.style import origin, style
from mnnvl_lab.plots.tables import bounds_table, memory_table, regions_table, traffic_table
from mnnvl_lab.plots.traffic import traffic
from mnnvl_lab.plots.workspace import fifos, film, live_region, play, strip

__all__ = [
    "alt_text",
    "bounds_table",
    "comparison",
    "context",
    "every_sample",
    "fastest",
    "fifos",
    "film",
    "growth",
    "interleaving",
    "latency",
    "left_out_errors",
    "live_region",
    "lower_bounds",
    "mapped_rows",
    "memory",
    "memory_ledger",
    "memory_table",
    "origin",
    "others_wait",
    "parts",
    "per_rank",
    "play",
    "prediction_errors",
    "predictions",
    "rank_grid",
    "region_map",
    "regions_table",
    "save",
    "shown",
    "simulated_round",
    "strip",
    "style",
    "timeline",
    "traffic",
    "traffic_table",
    "waits",
]
