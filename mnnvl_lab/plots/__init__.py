"""Tables in, Axes out.

Every function takes a tidy table and names of its columns, draws into `ax` or a new figure, and returns the Axes.
Labels and units come from the column registry; device, fabric and clock stand below the figure. Nothing is shown, saved
or configured: that is the caller's.
"""

from mnnvl_lab.plots.comparison import comparison
from mnnvl_lab.plots.context import context
from mnnvl_lab.plots.fifos import fifos
from mnnvl_lab.plots.grid import rank_grid
from mnnvl_lab.plots.growth import growth
from mnnvl_lab.plots.limits import limits
from mnnvl_lab.plots.lines import latency, memory
from mnnvl_lab.plots.live_region import film, live_region, play, strip
from mnnvl_lab.plots.look import style
from mnnvl_lab.plots.memory_ledger import memory_ledger
from mnnvl_lab.plots.regions import region_map
from mnnvl_lab.plots.save import save
from mnnvl_lab.plots.shown import alt_text, shown
from mnnvl_lab.plots.tables import bounds_table, memory_table, regions_table, traffic_table
from mnnvl_lab.plots.traffic import traffic
from mnnvl_lab.plots.waits import waits

__all__ = [
    "alt_text",
    "bounds_table",
    "comparison",
    "context",
    "fifos",
    "film",
    "growth",
    "latency",
    "limits",
    "live_region",
    "memory",
    "memory_ledger",
    "memory_table",
    "play",
    "rank_grid",
    "region_map",
    "regions_table",
    "save",
    "shown",
    "strip",
    "style",
    "traffic",
    "traffic_table",
    "waits",
]
