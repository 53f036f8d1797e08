"""Check the machine: what it has, how its ranks would share GPU memory, which fabrics it can run, and known errors."""

from mnnvl_lab.doctor.fabrics import FabricReport, check_fabrics
from mnnvl_lab.doctor.known_errors import KNOWN_ERRORS, KnownError, explain
from mnnvl_lab.doctor.machine import Machine, read_machine
from mnnvl_lab.doctor.places import check_ranks
from mnnvl_lab.doctor.report import Report, check_machine
from mnnvl_lab.doctor.sharing import Sharing, read_sharing

__all__ = [
    "KNOWN_ERRORS",
    "FabricReport",
    "KnownError",
    "Machine",
    "Report",
    "Sharing",
    "check_fabrics",
    "check_machine",
    "check_ranks",
    "explain",
    "read_machine",
    "read_sharing",
]
