"""A page as PDF, printed by the Chromium of this machine, which is not let onto a network."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from mnnvl_lab.errors import LabError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VARIABLE = "MNNVL_LAB_CHROMIUM"
"""Environment variable that names another browser; empty for none."""
TIMEOUT_S = 60
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--no-pdf-header-footer",
    "--virtual-time-budget=5000",
)


def find_chromium() -> str | None:
    """Path of a Chromium, or None."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE] or None
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def print_to_pdf(page: Path, pdf: Path, *, browser: str) -> None:
    """Print an HTML file to PDF.

    Raises:
        LabError: the browser did not print it.
    """
    with TemporaryDirectory(prefix="mnnvl_lab-chromium-") as profile:
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # its sandbox refuses root
        target = [f"--user-data-dir={profile}", f"--print-to-pdf={pdf}", page.resolve().as_uri()]
        try:
            done = subprocess.run([browser, *FLAGS, *root, *target], capture_output=True, timeout=TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(f"{browser}: did not print the page ({error}); pass --no-pdf") from None
    if done.returncode or not pdf.is_file():
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise LabError(f"{browser}: did not print the page (exit status {done.returncode}: {last}); pass --no-pdf")
