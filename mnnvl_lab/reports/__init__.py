"""From record files to a page, a figure and a table that one can publish."""

from mnnvl_lab.reports.evidence import Evidence
from mnnvl_lab.reports.write import WriteUp, report

__all__ = ["Evidence", "WriteUp", "report"]
