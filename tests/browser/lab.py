"""JupyterLab as `make lab` starts it, on a copy of the notebooks, and what a person does in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.browser.conftest import ROOT, free_port

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

START_S = 90
RUN_S = 150
QUIET = {"apputils-extension/notification": {"fetchNews": "false"}}
"""Settings of a person who has answered JupyterLab's first question."""
NOTEBOOK = ".jp-NotebookPanel:not(.lm-mod-hidden)"
RED = ":is([data-mime-type='application/vnd.jupyter.stderr'], [data-mime-type='application/vnd.jupyter.error'])"
PROGRESS = re.compile(r"^(starting|opening|point|closing|compiling|\d+ of \d+)")
TOO_WIDE = """panel => [...document.querySelectorAll(`${panel} .jp-OutputArea-output img`)]
    .filter(image => image.getBoundingClientRect().right >
        image.closest('.jp-OutputArea').getBoundingClientRect().right + 1)
    .map(image => image.alt || image.src.slice(0, 40))"""


def copy_of(folder: Path) -> Path:
    """What `make lab` needs of the repository: its Makefile and the notebooks, which a person may change."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "venv").mkdir()
    (folder / "venv" / ".ready").touch()  # newer than what it depends on: nothing is installed
    return folder


def surroundings(home: Path) -> dict[str, str]:
    """Environment in which JupyterLab keeps what it writes below `home`."""
    for name, values in QUIET.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    given = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # of tests without a notebook
    return given | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": str(ROOT),
    }


@contextmanager
def make_lab(home: Path) -> Iterator[str]:
    """`make lab` in a copy of the repository; gives the page that it would open in a browser, token included."""
    folder, log = copy_of(home), home / "log"
    words = ["ROOT=1", f"VENV={folder / 'venv'}", f"BIN={Path(sys.executable).parent}"]
    arguments = f"ARGS=--no-browser --ServerApp.port={free_port()} --LabApp.news_url="
    with log.open("w") as out:
        process = subprocess.Popen(
            ["make", "lab", *words, arguments],
            cwd=folder,
            env=surroundings(home),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield printed_address(process, log)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def printed_address(process: subprocess.Popen, log: Path) -> str:
    """The file that JupyterLab opens in a browser, which leads on to the notebook."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"file://\S+", log.read_text()):
            return found[0]
        time.sleep(0.2)
    raise RuntimeError(f"`make lab` printed no address: {log.read_text()[-2000:]}")


@dataclass(frozen=True, kw_only=True)
class Person:
    """Someone at a tab of JupyterLab: menus, mouse and keyboard."""

    tab: Page

    @property
    def notebook(self) -> Locator:
        return self.tab.locator(NOTEBOOK)

    def choose(self, *names: str) -> None:
        """An entry of the menus, by its names from the menu bar on."""
        bar, *rest = names
        self.tab.locator(".lm-MenuBar-item", has_text=re.compile(rf"^{bar}$")).click()
        for name in rest:
            entry = self.tab.locator(".lm-Menu-item", has=self.tab.get_by_text(name, exact=True)).last
            entry.hover()
            entry.click()

    def open(self, name: str) -> None:
        """Double-click a notebook in the file browser, and wait for it: another one may be in sight until then."""
        self.tab.locator(".jp-DirListing-item", has_text=name).dblclick()
        self.tab.locator(".lm-DockPanel-tabBar .lm-TabBar-tab.lm-mod-current", has_text=name).wait_for()
        self.tab.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-NotebookPanel-notebook").wait_for()
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        self.notebook.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(timeout=60_000)

    def prompts(self) -> list[str]:
        """`[ ]:`, `[*]:` or `[3]:` of each code cell with code."""
        return self.notebook.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()

    def run_all(self) -> list[str]:
        """Run All, and wait; what the lines of progress said meanwhile."""
        self.choose("Run", "Run All Cells")
        return self.watch()

    def watch(self, until: Callable[[list[str]], bool] | None = None, seconds: float = RUN_S) -> list[str]:
        """Look at the notebook until all cells have run, or what was seen of progress suffices."""
        seen: list[str] = []
        deadline = time.monotonic() + seconds
        while True:
            seen += [text for text in self.texts() if PROGRESS.search(text) and text not in seen]
            if until(seen) if until else self.is_done():
                return seen
            assert time.monotonic() < deadline, (self.prompts(), self.reds(), seen)
            self.tab.wait_for_timeout(150)

    def is_done(self) -> bool:
        prompts = self.prompts()
        return bool(self.reds()) or all(re.match(r"\[\d+\]:", text) for text in prompts)

    def texts(self) -> list[str]:
        """Outputs of plain text."""
        return [text.strip() for text in self.notebook.locator(".jp-RenderedText").all_text_contents()]

    def reds(self) -> list[str]:
        """Outputs that JupyterLab shows in red."""
        return self.notebook.locator(RED).all_text_contents()

    def too_wide(self) -> list[str]:
        """Figures that reach beyond the column of outputs."""
        return self.tab.evaluate(TOO_WIDE, NOTEBOOK)

    def write(self, cell: Locator, text: str) -> None:
        """Replace what a cell holds and run it."""
        cell.locator(".cm-content").click()
        self.tab.keyboard.press("Control+a")
        self.tab.keyboard.insert_text(text)
        self.tab.keyboard.press("Shift+Enter")
