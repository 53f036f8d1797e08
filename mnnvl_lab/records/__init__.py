"""Measurements as tidy tables: what the columns mean, where a table comes from, how it is kept and compared.

One row is one sample: one rank, one phase, one iteration of one point. Statistics are derived from samples, never
stored in their place.
"""

from mnnvl_lab.records.appender import Appender
from mnnvl_lab.records.compare import compare, is_different
from mnnvl_lab.records.digest import protection_of
from mnnvl_lab.records.files import done_points, load, load_auxiliary, point_key, save, save_auxiliary
from mnnvl_lab.records.provenance import describe, measured_rates, provenance
from mnnvl_lab.records.schema import COLUMNS, POINT_COLUMNS, SAMPLE_COLUMNS, SCHEMA, Column, require_column
from mnnvl_lab.records.statistics import slowest_rank, summary
from mnnvl_lab.records.table import join, new_table, provenance_of

__all__ = [
    "COLUMNS",
    "POINT_COLUMNS",
    "SAMPLE_COLUMNS",
    "SCHEMA",
    "Appender",
    "Column",
    "compare",
    "describe",
    "done_points",
    "is_different",
    "join",
    "load",
    "load_auxiliary",
    "measured_rates",
    "new_table",
    "point_key",
    "protection_of",
    "provenance",
    "provenance_of",
    "require_column",
    "save",
    "save_auxiliary",
    "slowest_rank",
    "summary",
]
