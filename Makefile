# Two commands do everything on a fresh clone: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 3

# Further arguments of `make lab`, such as ARGS="--no-browser --port 8890". ROOT=1: run as root, as in a container.
ARGS   ?=
ROOT   ?=
OPENED ?= notebooks/00-quickstart.ipynb

# Tests start hundreds of processes: let them share compiled modules, also where the environment says not to keep any.
test test-notebooks test-cluster test-browser: export PYTHONDONTWRITEBYTECODE =

.PHONY: quickstart test test-notebooks test-cluster test-browser site lab explore notebooks bench soak lint clean

quickstart: $(VENV)/.ready  ## set up, run the quickstart notebook, leave notebook, figures and records under out/
	$(BIN)/python -m tools.notebooks run notebooks/00-quickstart.ipynb --out out

test: $(VENV)/.ready  ## set up, lint, run the tests, JOBS side by side (many of them wait), then those that need the machine to themselves
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m 'not serial and not notebook' -n $(JOBS) --dist loadgroup --no-loadscope-reorder
	$(BIN)/python -m pytest -m 'serial and not notebook' $$(grep -l mark.serial tests/*.py)

test-notebooks: $(VENV)/.ready  ## run every notebook afresh and compare it with the outputs that it keeps; write reports from the template
	$(BIN)/python -m pytest -m 'notebook and not serial' -n $(JOBS) --dist loadgroup
	$(BIN)/python -m pytest -m 'notebook and serial'

test-cluster: $(VENV)/.ready  ## ranks under Slurm and over SSH, on daemons that the tests start; skipped where they are not installed
	$(BIN)/python -m pytest tests/cluster -rs

test-browser: $(VENV)/.browser $(VENV)/.site  ## notebooks, explorer and site in a real Chromium, driven by Playwright; screenshots under out/browser/
	$(BIN)/python -m pytest tests/browser -rs

site: $(VENV)/.site  ## notebooks, pages and glossary as static files under out/site/, from their committed outputs
	$(BIN)/python -m tools.site --out out/site

lab: $(VENV)/.ready  ## JupyterLab on the loopback address, behind its token; ARGS="..." are passed on
	@case "$$(id -u) $(ROOT) $(ARGS)" in 0\ 1\ *|*--allow-root*|[1-9]*) ;; *) echo "make lab: you are root, and a notebook may run any command: \
	work as another user, or allow it inside a container: make lab ROOT=1" >&2; exit 2;; esac
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --KernelManager.transport_encryption=auto --ServerApp.root_dir=$(CURDIR) --LabApp.default_url=/lab/tree/$(OPENED) $(if $(filter 1,$(ROOT)),--allow-root) $(ARGS) $(OPENED)

explore:  ## JupyterLab on the explorer: sliders for layout, model and load; ARGS and ROOT as for lab
	@$(MAKE) --no-print-directory lab OPENED=notebooks/explore.ipynb ARGS="$(ARGS)" ROOT="$(ROOT)"

notebooks: $(VENV)/.ready  ## run every notebook afresh and keep its scrubbed outputs
	$(BIN)/python -m tools.notebooks refresh notebooks/[0-9]*.ipynb

bench: $(VENV)/.ready  ## what the host transports and the lab itself cost, as tables
	$(BIN)/python -m benchmarks

soak: $(VENV)/.ready  ## the long campaigns: kills, delays, fuzzed rounds
	$(BIN)/python -m tools.soak

lint: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf out $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), f"Python {sys.version.split()[0]} found, 3.11 to 3.13 needed: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/.browser $(VENV)/.site: $(VENV)/.%: $(VENV)/.ready  ## what one target alone needs
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	touch $@
