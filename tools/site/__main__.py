"""Build the site from what is committed: no notebook is executed, and no built page loads anything from elsewhere.

python -m tools.site --out out/site
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.site.offline import loaded_from_elsewhere
from tools.site.stage import stage

HERE = Path(__file__).parent
LEFT_OUT = (".buildinfo", ".doctrees", "objects.inv")


def build(out: Path) -> int:
    """Build into `out`, in place of what is there; 0, or the status of Sphinx, which takes a warning as an error."""
    from sphinx.cmd.build import main as sphinx

    with TemporaryDirectory() as sources, TemporaryDirectory() as cache:
        pages = stage(Path(sources))
        shutil.rmtree(out, ignore_errors=True)
        status = sphinx(["-q", "-W", "--keep-going", "-c", str(HERE), "-d", cache, sources, str(out)])
    if status == 0:
        (out / ".nojekyll").touch()  # GitHub Pages leaves out folders that begin with _ otherwise
        print(f"{len(pages)} pages under {out}/: open {out}/index.html, or python -m http.server --directory {out}")
    return status


def check(out: Path) -> int:
    """Say what the built site loads from elsewhere; 1 if anything."""
    found = list(loaded_from_elsewhere(out))
    for path, address in found:
        print(f"{path.relative_to(out)} loads {address}: bring the file into the site", file=sys.stderr)
    return int(bool(found))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/site"), help="folder of the site, replaced if it exists")
    out = parser.parse_args(arguments).out
    if out.exists() and not (out / ".nojekyll").exists() and any(out.iterdir()):
        parser.error(f"{out} holds something else than a built site and would be replaced: choose another folder")
    return build(out) or check(out)


if __name__ == "__main__":
    sys.exit(main())
