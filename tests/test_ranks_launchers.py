"""Engines over other launchers than `local`, where this machine has them."""

import os
import shutil

import pytest

from mnnvl_lab.errors import RankDied
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
from tests import ranks_helpers as on


@pytest.mark.skipif(shutil.which("mpiexec") is None, reason="mpiexec is not installed (Debian: openmpi-bin)")
def test_mpi_places_ranks_and_a_death_is_named():
    options = {"MPIEngineSetLauncher": {"mpi_args": ["--oversubscribe"]}}
    env = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.getuid() == 0 else {}
    with Ranks(Layout(tp=2), launcher="mpi", launcher_options=options, env=env) as ranks:
        assert ranks.run(on.environment, "OMPI_COMM_WORLD_RANK") == ["0", "1"]
        assert ranks.run(on.groups, ["ep"])[1] == {"ep": ((0, 1), (0, 1), 1)}
        with pytest.raises(RankDied, match="rank 1 in dispatch"):
            ranks.run(on.exit_hard, 1, 3)
        assert len(ranks.run(on.pid)) == 2


def test_environment_by_rank():
    with Ranks(Layout(dp=2), env=lambda rank: {"SEAT": f"number {rank}"}) as ranks:
        assert ranks.run(on.environment, "SEAT") == ["number 0", "number 1"]
        ranks.kill(0)
        assert ranks.run(on.environment, "SEAT") == ["number 0", "number 1"]
