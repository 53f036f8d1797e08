"""What tests share: rank processes, whose start costs seconds; hypothesis without deadlines; skips without a GPU."""

import os
import signal
import sys

import pytest
from hypothesis import settings

from mnnvl_lab.hardware import count_visible_gpus
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks

os.environ.setdefault("MPLBACKEND", "Agg")  # no test opens a window

# jsonschema, by which nbformat checks notebooks, imports this if it can: 3 s for grammars of addresses that no notebook
# has, in every process that collects tests.
sys.modules.setdefault("rfc3987_syntax", None)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for a job that a script starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else what tests interrupt would ignore it too

LONGEST = [
    f"tests.test_{name}"
    for name in (
        "transport_contract",
        "interrupts",
        "helper_deaths",
        "readme",
        "records_damage",
        "sweep_survival",
        "fuzz",
        "ranks_death",
        "checks",
        "cli",
    )
]

# A busy machine is no failure; in continuous integration what fails is the change, not the draw.
settings.register_profile("lab", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("lab")


@pytest.fixture(scope="session")
def host_ranks():
    """Four warm ranks on `host`, at first TP 2 x DP 2; a test may `use` another layout, or `kill`: the next renews."""
    with Ranks(Layout(tp=2, dp=2)) as ranks:
        yield ranks


@pytest.fixture(autouse=True)
def _figures_go():
    """What a test has drawn by pyplot goes with it."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    """Side by side, a module's tests stay in one process, which makes its fixtures (ranks, fits, reports) once; the
    longest begin first, so that none is left alone at the end.

    Tests marked `gpu` skip where no GPU is, in one place and with one reason.
    """
    for item in items:
        if not item.get_closest_marker("xdist_group") and not item.get_closest_marker("notebook"):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.module.__name__) in LONGEST else len(LONGEST))
    if count_visible_gpus():
        return
    no_gpu = pytest.mark.skip(reason="no NVIDIA GPU is visible: FlashInfer's kernels cannot run here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(no_gpu)
