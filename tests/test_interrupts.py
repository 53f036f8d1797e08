"""Real interrupts (SIGINT) of scripts and of a kernel: a short message, finished points kept, ranks still usable."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from jupyter_client.manager import start_new_kernel

from mnnvl_lab import records
from mnnvl_lab.errors import Interrupted, RankError
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.run import run
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.ranks.interrupts import hold_interrupts
from tests import ranks_helpers as on
from tests import sweep_to_interrupt

ROOT = Path(__file__).parents[1]
LIMIT_S = 90


class Script:
    """`tests.sweep_to_interrupt` in a process group of its own, as a terminal's Ctrl-C would reach it."""

    def __init__(self, tmp_path, *arguments):
        command = [sys.executable, "-u", "-m", "tests.sweep_to_interrupt", *arguments]
        env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
        )

    def interrupt_after(self, line):
        for said in self._process.stdout:
            if said.strip() == line:
                break
        self._descendants = psutil.Process(self._process.pid).children(recursive=True)
        os.killpg(self._process.pid, signal.SIGINT)

    def end(self):
        out, errors = self._process.communicate(timeout=LIMIT_S)
        _, alive = psutil.wait_procs(self._descendants, timeout=20)
        assert not alive
        return self._process.returncode, out, errors


def test_a_script_gets_a_short_message_finished_points_and_usable_ranks(tmp_path):
    script = Script(tmp_path, "caught")
    script.interrupt_after("point 3")
    status, out, errors = script.end()
    assert status == 0
    assert "Traceback" not in errors
    words = re.search(
        r"interrupted: point (\d+) of 400 was stopped, (\d+) finished\. .*`table`.* in (\S+\.parquet): ", out
    )
    at, finished = int(words[1]), int(words[2])
    assert at == finished + 1 >= 3  # "point 3" is said before it is kept
    assert f"points kept: {finished}\nworks again: 1" in out
    assert records.load(words[3])["tokens"].nunique() == finished


def test_an_interrupt_that_a_script_does_not_catch_ends_it_in_few_lines_and_names_the_file(tmp_path):
    script = Script(tmp_path, "uncaught")
    script.interrupt_after("point 2")
    status, _, errors = script.end()
    assert status != 0
    assert errors.count('File "') <= 8
    [file] = tmp_path.glob("mnnvl_lab-*")
    assert f"run(..., out='{file}', resume=True) measures the rest" in errors
    sweep = sweep_to_interrupt.SWEEP
    done = records.load(file)["tokens"].nunique()
    shorter = type(sweep)(**vars(sweep) | {"tokens": sweep.tokens[: done + 2]})
    assert run(shorter, out=file, resume=True, progress=False)["tokens"].nunique() == done + 2


def test_with_out_the_message_names_that_file_alone(tmp_path):
    out = tmp_path / "kept" / "out.parquet"
    script = Script(tmp_path, "caught", str(out))
    script.interrupt_after("point 2")
    status, said, _ = script.end()
    assert status == 0
    assert re.search(
        rf"stopped, \d+ finished\. They are in {re.escape(str(out))}: run\(\.\.\., out=.*resume=True\)", said
    )
    assert not list(tmp_path.glob("mnnvl_lab-unfinished*"))


STARTING = """
import os, signal, sys, threading, time
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
try:
    threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGINT)).start()
    ranks = Ranks(Layout(dp=3), progress=False)
    time.sleep(60)
except KeyboardInterrupt as error:
    print("stopped:", error)
"""


@pytest.mark.parametrize("after_s", [0.01, 0.3, 0.8, 1.5, 3])
def test_ranks_interrupted_while_they_start_leave_nothing(tmp_path, after_s):
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", STARTING, str(after_s)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=LIMIT_S)
    assert done.stdout in (
        "stopped: starting 3 ranks: stopped. Every process was ended; start them again.\n",
        "stopped: \n",
    )
    assert done.stderr == ""
    deadline_s = time.monotonic() + 20
    while list(tmp_path.iterdir()) and time.monotonic() < deadline_s:
        time.sleep(0.1)  # the reaper removes what an interrupt between two lines left
    assert not list(tmp_path.iterdir())


class Kernel:
    """A notebook's kernel, and the outputs of a cell with the seconds at which they came."""

    def __init__(self):
        self._manager, self._client = start_new_kernel(cwd=str(ROOT), env=os.environ | {"PYTHONPATH": str(ROOT)})

    def run(self, code, interrupt_after=None):
        """Messages of the cell; an interrupt is sent once it has printed or shown `interrupt_after`."""
        asked, said, messages = self._client.execute(code), "", []
        began_s = time.monotonic()
        while True:
            message = self._client.get_iopub_msg(timeout=LIMIT_S)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            messages.append((kind, content, time.monotonic() - began_s))
            said += content["text"] if kind == "stream" else content.get("data", {}).get("text/plain", "")
            if interrupt_after and interrupt_after in said:
                interrupt_after = None
                self._manager.interrupt_kernel()
            if kind == "status" and content["execution_state"] == "idle":
                return messages

    def close(self):
        self._client.stop_channels()
        self._manager.shutdown_kernel()


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    messages = kernel.run("from tests import sweep_to_interrupt as it, ranks_helpers as on; import sys, time")
    assert not [content for kind, content, _ in messages if kind == "error"]
    yield kernel
    kernel.close()


def printed(messages):
    return "".join(content["text"] for kind, content, _ in messages if kind == "stream")


def shown(messages):
    return [content["data"]["text/plain"] for kind, content, _ in messages if kind.endswith("display_data")]


def error_of(messages):
    [content] = [content for kind, content, _ in messages if kind == "error"]
    return content


def test_a_cell_shows_progress_in_place_and_an_interrupt_as_a_short_message(kernel):
    started = kernel.run("ranks = it.Ranks(it.LAYOUT)")
    assert shown(started)[0] == "starting 2 ranks"
    assert shown(started)[-1] == "2 ranks started"
    assert printed(started) == ""  # stderr above all
    stopped = kernel.run("it.run(ranks=ranks)", interrupt_after="point 3\n")
    assert any(re.fullmatch(r"point 3 of 400(, \d+ s)?", text) for text in shown(stopped))
    assert shown(stopped)[-1] == ""
    assert len({content["transient"]["display_id"] for kind, content, _ in stopped if "display" in kind}) == 1
    error = error_of(stopped)
    assert error["ename"] == "Interrupted"
    assert 1 <= len(error["traceback"]) <= 3
    assert re.match(
        r"Interrupted: point \d+ of 400 was stopped, \d+ finished\..*`sys\.last_value\.table`", error["traceback"][0]
    )
    finished = int(re.search(r"(\d+) finished", error["evalue"])[1])
    kept = kernel.run("print(sys.last_value.table['tokens'].nunique(), len(ranks.run(on.pid)))")
    assert printed(kept) == f"{finished} 2\n"


def test_an_interrupt_while_ranks_work_names_what_was_stopped(kernel):
    kernel.run("ranks = it.Ranks(it.LAYOUT)")
    code = "ranks.run(on.sleep_on, 1, 60, round_limit_s=60)"
    error = error_of(kernel.run(code, interrupt_after="sleep_on on 2 ranks"))
    [words] = error["traceback"]
    assert re.fullmatch(
        r"Interrupted: sleep_on on 2 ranks: stopped; ranks that were at work were ended: 1\. "
        r"The next call on the ranks starts what is missing\.",
        words,
    )
    assert printed(kernel.run("print(len(ranks.run(on.pid)))")) == "2\n"


def test_no_cell_is_silent_for_more_than_two_seconds_and_progress_can_be_off(kernel):
    slow = "ranks = it.Ranks(it.LAYOUT); ranks.run(on.sleep_on, 1, 4)"
    times_s = [at_s for _, _, at_s in kernel.run(slow)]
    assert max(after - before for before, after in itertools.pairwise(times_s)) < 2
    assert any(
        re.fullmatch(r"sleep_on on 2 ranks, \d s", text) for text in shown(kernel.run("ranks.run(on.sleep_on, 1, 3)"))
    )
    quiet = kernel.run("ranks.close(); ranks = it.Ranks(it.LAYOUT, progress=False); ranks.run(on.sleep_on, 1, 3)")
    assert shown(quiet) == []
    assert printed(quiet) == ""


def test_points_survive_an_error_of_a_later_one(host_ranks, monkeypatch):
    made = iter(range(3))

    def measure(point, ranks):
        if next(made) == 2:
            return ranks.run(on.fail_on, 1)
        return sweep_to_interrupt.measure(point, ranks)

    monkeypatch.setattr("mnnvl_lab.measure.run.measure", measure)
    with pytest.raises(RankError, match="no luck on 1") as caught:
        run(sweep_to_interrupt.SWEEP, ranks=host_ranks, progress=False)
    assert caught.value.table["tokens"].unique().tolist() == [1, 2]
    [note] = caught.value.__notes__
    path = re.search(r"^2 of 400 points were finished before\. .* in (\S+): ", note)[1]
    assert len(records.load(path)) == len(caught.value.table)
    os.unlink(path)


def test_an_interrupt_waits_for_the_end_of_a_block():
    reached = []

    def interrupted():
        with hold_interrupts():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached == ["the end"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_two_interrupts_end_no_less_than_one(monkeypatch):
    with Ranks(Layout(tp=2), progress=False) as ranks:
        kill = ranks._cluster.kill

        def interrupted_kill(processes):
            signal.raise_signal(signal.SIGINT)
            kill(processes)

        monkeypatch.setattr(ranks._cluster, "kill", interrupted_kill)
        monkeypatch.setattr("mnnvl_lab.ranks.pool.gather", lambda *a, **k: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            ranks.run(on.sleep_on, 1, 60)
        monkeypatch.undo()
        assert ranks.run(on.place) == [(0, 2, "cpu", "host"), (1, 2, "cpu", "host")]
