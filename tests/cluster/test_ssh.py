"""Ranks on two hosts over SSH: start, rounds, deaths, lost connections, hosts that do not answer."""

import json

import psutil
import pytest

from mnnvl_lab.errors import HelperDied, RankDied, Refused
from mnnvl_lab.exchange import MODES, Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.routing import Load, Uniform
from tests import ranks_helpers as on
from tests import transport_helpers as transports

SQUARE = Layout(tp=2, dp=2)
LOADS = [Load(routing=Uniform(), tokens=tokens, seed=seed) for seed, tokens in enumerate((24, 12))]


@pytest.fixture(scope="module")
def ranks(ssh):
    with Ranks(SQUARE, launcher="ssh", launcher_options=ssh.options(2)) as ranks:
        yield ranks


def test_each_host_has_the_ranks_that_were_asked_for(ranks):
    servers = ranks.run(on.environment, "MNNVL_LAB_NODE")
    assert servers[0] == servers[1] != servers[2] == servers[3]
    assert ranks.run(on.groups, ["ep"])[2] == {"ep": ((0, 1, 2, 3), (0, 1, 2, 3), 2)}


@pytest.mark.parametrize("mode", MODES)
def test_rounds_agree_with_the_oracle(ranks, mode):
    exchange = Exchange(mode=mode, layout=SQUARE, max_tokens=24, hidden=256, experts=16, top_k=4)
    assert ranks.run(transports.rounds, exchange, LOADS) == [2] * 4


def test_a_dead_rank_is_named_and_replaced_on_its_host(ranks):
    before, servers = ranks.run(on.pid), ranks.run(on.environment, "MNNVL_LAB_NODE")
    with pytest.raises(RankDied, match="rank 2 in dispatch: exit code 3"):
        ranks.run(on.exit_hard, 2, 3)
    after = ranks.run(on.pid)
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, True, False, True]
    assert ranks.run(on.environment, "MNNVL_LAB_NODE") == servers


def test_a_lost_connection_is_named_and_the_next_call_connects_again(ranks, ssh):
    ranks.run(on.pid)
    first, _ = ranks._cluster._engines.processes()
    first.kill()
    with pytest.raises(RankDied, match=rf"the connection to host {ssh.hosts[0]} ended, and its ranks with it"):
        ranks.run(on.sleep_on, 0, 60)
    assert len(ranks.run(on.pid)) == 4


def test_more_ranks_than_places_are_refused_and_the_ranks_stay(ranks, ssh):
    with pytest.raises(Refused, match=rf"8 ranks on hosts with 4 places \({ssh.hosts[0]}: 2, {ssh.hosts[1]}: 2"):
        ranks.use(Layout(tp=2, dp=4))
    assert len(ranks.run(on.pid)) == 4


def test_a_key_travels_in_no_command_line_and_no_environment(ranks):
    file = ranks._cluster.run_dir / "security" / "ipcontroller-engine.json"
    secret = json.loads(file.read_text())["key"]
    for process in psutil.process_iter():
        try:
            seen = " ".join(process.cmdline()) + str(process.environ())
        except psutil.Error:
            continue
        assert secret not in seen


@pytest.mark.parametrize(
    ("engines", "words"),
    [
        ({}, "SSHEngineSetLauncher.engines is {}: launcher ssh needs hosts"),
        ({"-oProxyCommand=x": 1}, "host is '-oProxyCommand=x': it must be a name"),
        ({"127.0.0.1": 0}, "host 127.0.0.1 is for 0 ranks"),
    ],
)
def test_hosts_that_make_no_sense_are_refused(engines, words):
    with pytest.raises(Refused, match=words):
        Ranks(SQUARE, launcher="ssh", launcher_options={"SSHEngineSetLauncher": {"engines": engines}})


def test_a_host_that_does_not_answer_is_named_in_the_words_of_ssh(ssh):
    options = ssh.options(2)["SSHEngineSetLauncher"] | {"engines": {"127.0.0.1:1": 2}}
    with pytest.raises(HelperDied, match=r"fork server on 127\.0\.0\.1:1 process died: exit code 255") as caught:
        Ranks(Layout(tp=2), launcher="ssh", launcher_options={"SSHEngineSetLauncher": options})
    assert "Connection refused" in str(caught.value)
