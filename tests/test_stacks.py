"""Stacks of processes: each one that was asked is waited for, however late it answers."""

from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import psutil
import pytest

from mnnvl_lab.hang import detect


@dataclass
class Asked:
    """A process that appends its stack to its file some time after the signal."""

    path: Path
    delay_s: float | None
    pid: int
    here: bool = True

    @property
    def handle(self):
        return self

    def send_signal(self, number):
        if self.delay_s is None:
            raise psutil.NoSuchProcess(self.pid)
        Timer(self.delay_s, self._answer).start()

    def _answer(self):
        with self.path.open("a") as file:
            file.write(f"stack of {self.pid}")


def asked(run_dir, *delays_s):
    processes = [Asked(path=run_dir / f"stack-{pid}", delay_s=delay_s, pid=pid) for pid, delay_s in enumerate(delays_s)]
    for process in processes:
        process.path.write_text("an older one, ")
    return processes


def test_a_process_that_answers_late_is_waited_for(tmp_path):
    assert detect.read_stacks(tmp_path, asked(tmp_path, 0, 0.3)) == ["stack of 0", "stack of 1"]


@pytest.mark.parametrize("delay_s", [None, 0.6])
def test_one_that_has_ended_or_answers_too_late_takes_nothing_from_the_rest(tmp_path, monkeypatch, delay_s):
    monkeypatch.setattr(detect, "STACKS_LIMIT_S", 0.2)
    assert detect.read_stacks(tmp_path, asked(tmp_path, 0, delay_s)) == ["stack of 0", ""]


def test_a_process_of_another_machine_with_the_same_pid_has_no_stack(tmp_path):
    (here,) = asked(tmp_path, 0)
    elsewhere = Asked(path=here.path, delay_s=0, pid=here.pid, here=False)
    assert detect.read_stacks(tmp_path, [elsewhere, here]) == ["", "stack of 0"]


def test_one_without_a_file_is_not_signalled(tmp_path):
    (process,) = asked(tmp_path, 0)
    process.path.unlink()
    assert detect.read_stacks(tmp_path, [process]) == [""]
