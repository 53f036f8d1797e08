"""A JupyterLab on the loopback address and a Chromium beside it, both with directories of their own."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOTS = Path(os.environ.get("MNNVL_LAB_SHOTS", ROOT / "out" / "browser"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
START_S = 90


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running JupyterLab.

    Attributes:
        url: with its token.
        theme: `light` or `dark`.
    """

    url: str
    theme: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(port: int, token: str, folder: Path) -> list[str]:
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.root_dir": folder,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": token,
        "LabApp.news_url": "",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    return [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]


def wait_until_ready(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    raise RuntimeError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module", params=["light", "dark"])
def server(request, tmp_path_factory):
    """JupyterLab on a copy of the explorer's notebook, in one theme."""
    home = tmp_path_factory.mktemp(f"jupyter-{request.param}")
    folder = home / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "notebooks" / "explore.ipynb", folder)
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    chosen = {"themes": {"theme": f"JupyterLab {request.param.title()}"}, "notification": {"fetchNews": "false"}}
    for name, values in chosen.items():
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    port, token, log = free_port(), secrets.token_hex(16), home / "log"
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": str(ROOT),
    }
    with log.open("w") as out:
        process = subprocess.Popen(command(port, token, folder), env=environment, stdout=out, stderr=out)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/api?token={token}", process, log)
        url = f"http://127.0.0.1:{port}/lab/tree/explore.ipynb?reset&token={token}"
        yield Server(url=url, theme=request.param)
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium; each module opens contexts of its own in it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to drive a browser")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def open_tab(chromium, **options):
    """A tab in a context of its own; `tab.problems` collects what its console calls an error."""
    context = chromium.new_context(**options)
    tab = context.new_page()
    tab.problems = []
    tab.on("console", lambda m: tab.problems.append(m.text) if m.type == "error" else None)
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    yield tab
    context.close()


@pytest.fixture(scope="module")
def page(server, chromium):
    """A tab on the running explorer."""
    with open_tab(chromium, viewport={"width": 1500, "height": 1350}) as tab:
        tab.goto(server.url)
        yield tab


def shoot_as(tab, name: str) -> None:
    """A screenshot, to be looked at."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=str(SHOTS / f"{name}.png"))
