"""Hosts over SSH: where the ranks' fork servers run, and the command line that starts one there."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from mnnvl_lab.errors import Refused, is_whole, shown
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks.network import Say, address_towards
from mnnvl_lab.ranks.remote import Host, placed

IGNORED = ("scp_args", "scp_cmd")  # of ipyparallel's launcher; nothing is copied here, everything goes through ssh
KNOWN = ("engines", "remote_python", "ssh_args", "ssh_cmd", "user")
FIXED = ("-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
"""A question for a password would wait for ever; a host that vanished is noticed within a minute."""


class SshHosts:
    """Hosts as `launcher_options` names them.

    Args:
        options: of `SSHEngineSetLauncher`: `engines` (ranks by host), `remote_python`, `ssh_args`, `ssh_cmd`, `user`.

    Raises:
        Refused: an option is missing or wrong, or `ssh` is not installed.
    """

    cancel_command = leave_command = ()

    def __init__(self, options: Mapping[str, Any]):
        unknown = [name for name in options if name not in KNOWN + IGNORED]
        if unknown:
            raise Refused(f"SSHEngineSetLauncher has no {shown(unknown[0])}: choose from {', '.join(KNOWN)}")
        slots_of = {_host(name): _count(name, slots) for name, slots in _engines(options).items()}
        self._ssh = [*options.get("ssh_cmd", ["ssh"]), *options.get("ssh_args", [])]
        if not shutil.which(self._ssh[0]):
            raise Refused(f"launcher ssh without {self._ssh[0]}: install an SSH client (Debian: openssh-client)")
        self._python, self._user = options.get("remote_python", sys.executable), options.get("user", "")
        self._hosts = [
            Host(name=name, slots=slots, command=self._command(name), quote=shlex.quote)
            for name, slots in slots_of.items()
        ]

    def address(self) -> str:
        """Address of this machine that the hosts can reach, by the route to the first of them.

        Raises:
            Refused: there is no telling.
        """
        name = self._hosts[0].name.rpartition("@")[2].partition(":")[0]
        try:
            return address_towards(name)
        except OSError as error:
            raise Refused(
                f"no route to host {name} ({error}): set the address of this machine that the hosts can reach, "
                'launcher_options={"Cluster": {"controller_ip": "10.0.0.1"}, ...}'
            ) from error

    def fits(self, layout: Layout) -> bool:
        """Always, or never.

        Raises:
            Refused: the hosts have too few places.
        """
        return bool(placed(self._hosts, layout))

    def ready(self, layout: Layout, deadline: float, say: Say) -> list[Host]:
        return self._hosts

    def how_it_ended(self) -> str:
        """Nothing stands for all hosts, as a job does."""
        return ""

    def close(self) -> None:
        """The connections end by themselves."""

    def _command(self, name: str) -> tuple[str, ...]:
        user, _, host = name.rpartition("@")
        host, _, port = host.partition(":")
        where = [*(["-p", port] if port else []), f"{user or self._user}@{host}" if user or self._user else host]
        return (*self._ssh, *FIXED, *where, shlex.quote(self._python))


def _engines(options: Mapping[str, Any]) -> Mapping[str, Any]:
    engines = options.get("engines")
    if not isinstance(engines, Mapping) or not engines:
        raise Refused(
            f"SSHEngineSetLauncher.engines is {shown(engines)}: launcher ssh needs hosts with ranks on each; "
            'pass launcher_options={"SSHEngineSetLauncher": {"engines": {"node1": 4, "node2": 4}}}'
        )
    return engines


def _host(name: Any) -> str:
    if not isinstance(name, str) or not name or name.startswith("-") or any(c.isspace() for c in name):
        raise Refused(f"host is {shown(name)}: it must be a name such as node1, user@node1 or node1:2222")
    return name


def _count(name: str, slots: Any) -> int:
    count = slots.get("n", 1) if isinstance(slots, Mapping) else slots
    if not is_whole(count) or count < 1:
        raise Refused(f"host {name} is for {shown(slots)} ranks: pass a whole number of at least 1")
    return int(count)
