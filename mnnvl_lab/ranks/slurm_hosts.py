"""Nodes of a Slurm allocation as hosts for ranks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks.network import Say, address_towards
from mnnvl_lab.ranks.remote import Host, placed
from mnnvl_lab.ranks.slurm import Allocation, NodeShare, SlurmError, slurm_command


class SlurmHosts:
    """The nodes of one job: submitted when ranks are first wanted, and again when it has ended or is too small.

    Args:
        options: of `SlurmEngineSetLauncher`, as `Allocation` takes them.
        token: digits that no other run has, for the job's name.
    """

    def __init__(self, options: Mapping[str, Any], token: str):
        self._allocation = Allocation(f"mnnvl_lab-{token[:12]}", options)
        self._hosts: list[Host] = []
        self.cancel_command = self._allocation.cancel_command

    @property
    def leave_command(self) -> list[str]:
        """Ends this one job, from a node of it."""
        return ["scancel", "--quiet", self._allocation.job] if self._allocation.own else []

    def address(self) -> str:
        """Address of this machine on the network of the nodes, by the route to one of them.

        Raises:
            Refused: Slurm does not answer, or there is no telling.
        """
        try:
            node = slurm_command("sinfo", "--noheader", "--Node", "--format=%o").splitlines()[0]
            return address_towards(node)
        except (SlurmError, IndexError, OSError) as error:
            raise Refused(
                f"no way to Slurm's nodes ({error}): see that sinfo answers here; or set the address of this machine "
                'that the nodes can reach, launcher_options={"Cluster": {"controller_ip": "10.0.0.1"}, ...}'
            ) from error

    def fits(self, layout: Layout) -> bool:
        """Whether the job at hand has room.

        Raises:
            Refused: it has not, and is not one that could be replaced by a larger one.
        """
        try:
            return not self._hosts or bool(placed(self._hosts, layout))
        except Refused:
            if self._allocation.own:
                return False
            raise

    def ready(self, layout: Layout, deadline: float, say: Say) -> list[Host]:
        """The nodes of the job, once it runs.

        Raises:
            Refused: Slurm takes no such job, or the job around this process has no room. RankDied, RankTimeout: the
                job ended or still waits. SlurmError: Slurm does not answer.
        """
        if not (self._hosts and self.fits(layout) and self._allocation.state().runs):
            self._hosts = []
            if self._allocation.own:
                self._allocation.cancel()
                self._allocation.submit(layout.world_size, nodes=layout.nodes)
            self._allocation.await_running(deadline, lambda state: say(str(state)))
            self._hosts = [self._host(share) for share in self._allocation.shares()]
        return self._hosts

    def how_it_ended(self) -> str:
        """What became of the job, if it runs no more."""
        try:
            return self._allocation.how_it_ended()
        except SlurmError as error:
            return f"Slurm does not say what became of job {self._allocation.job}: {error}"

    def close(self) -> None:
        """Give the job back, if it is ours."""
        self._allocation.cancel()

    def _host(self, share: NodeShare) -> Host:
        command = (*self._allocation.step_command(share), sys.executable)
        return Host(name=share.name, slots=share.tasks, command=command)
