"""One line takes a notebook to GPUs: what the tool replaces, and that nothing in a notebook goes round it."""

import ast
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from mnnvl_lab import host_only
from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.transport.host.one_sided import HostOneSided
from mnnvl_lab.transport.host.two_sided import HostTwoSided
from tools import notebooks as tool
from tools.notebook_outputs import scrub
from tools.notebook_runs import SWITCH, switch

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in sorted(FOLDER.glob("[0-9]*.ipynb"))}
LIVE = {name: notebook for name, notebook in NOTEBOOKS.items() if any(SWITCH in c.source for c in notebook.cells)}
every_live_notebook = pytest.mark.parametrize("name", LIVE)
HOST_PROTOCOLS = {"challenge", "prepare_rounds", "replay_one_sided", "replay_prepare", "step_rounds", "stress"}
"""Rank functions that run Python's protocols between processes, which GPUs do not have."""


def notebook_of(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def calls(notebook):
    """Every call in the code cells, in order."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield from (node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call))


def name_of(function):
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def argument(call, name):
    """The source of a named argument; empty without one."""
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), "")


def test_the_line_is_replaced_and_nothing_else():
    notebook = notebook_of(
        f"import mnnvl_lab as lab\n\n{SWITCH}", 'ranks = lab.Ranks(layout, fabric=FABRIC)\nx = "host"'
    )
    switch(notebook, "nvlink")
    assert notebook.cells[0].source.splitlines()[-1] == 'FABRIC = "nvlink"  # or "shared_gpu", "nvlink"'
    assert notebook.cells[1].source.endswith('x = "host"')


@pytest.mark.parametrize(
    "sources",
    [
        ("x = 1", SWITCH),
        (SWITCH, SWITCH),
        (f"{SWITCH}\n{SWITCH}",),
        ("ranks = lab.Ranks(layout)",),
        ("lab.run(sweep)",),
    ],
)
def test_a_line_in_another_place_is_refused(sources):
    with pytest.raises(ValueError, match="has it once, in its first code cell"):
        switch(notebook_of(*sources), "nvlink")


def test_a_notebook_that_starts_no_ranks_needs_no_line():
    notebook = notebook_of("lab.plan(layout)")
    switch(notebook, "nvlink")
    assert notebook.cells[0].source == "lab.plan(layout)"


@pytest.mark.parametrize("fabric", ["shared_gpu", "nvlink"])
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_can_be_taken_to_gpus(name, fabric):
    notebook = nbformat.from_dict(NOTEBOOKS[name])
    switch(notebook, fabric)
    assert (f'FABRIC = "{fabric}"' in notebook.cells[1].source) == (name in LIVE)


@every_live_notebook
def test_ranks_and_sweeps_take_the_fabric_of_the_line(name):
    for call in calls(LIVE[name]):
        given = argument(call, "fabric")
        if name_of(call.func) == "Ranks":
            assert given, ast.unparse(call)
        if given:
            assert "host" not in given
    constants = [
        node.value
        for cell in LIVE[name].cells
        if cell.cell_type == "code"
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Constant)
    ]
    assert constants.count("host") == 1


def assigned(notebook):
    """Values of the names that cells assign, unparsed, the last of each; also of `with ... as name`."""
    values = {}
    for cell in notebook.cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                values[node.targets[0].id] = ast.unparse(node.value)
            if isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
                values.setdefault(node.optional_vars.id, "")
                values[node.optional_vars.id] += ast.unparse(node.context_expr)
    return values


@every_live_notebook
def test_what_no_gpu_can_show_runs_on_ranks_that_say_so(name):
    values = assigned(LIVE[name])
    for call in calls(LIVE[name]):
        uses = {part.attr for each in call.args for part in ast.walk(each) if isinstance(part, ast.Attribute)}
        if name_of(call.func) == "run" and HOST_PROTOCOLS & uses:
            ranks = ast.unparse(call.func.value)
            assert any(f"fabric={value}" in values[ranks] for value, made in values.items() if "host_only(" in made), (
                ast.unparse(call)
            )


def test_only_another_fabric_than_host_is_told_about(capsys):
    assert host_only("host", "a kernel cannot stop") == "host"
    assert capsys.readouterr().out == ""
    assert host_only("nvlink", "a kernel cannot stop") == "host"
    assert capsys.readouterr().out == "This part runs on fabric host, not on nvlink: a kernel cannot stop.\n"


@pytest.mark.parametrize("transport", [HostOneSided, HostTwoSided])
def test_protocols_between_processes_refuse_ranks_on_gpus(transport):
    exchange = Exchange(mode=transport.mode, layout=Layout(dp=2), max_tokens=4, hidden=64, experts=8, top_k=2)
    with pytest.raises(Refused, match=rf"{transport.mode} between processes on fabric shared_gpu: .*fabric=.host."):
        transport(SimpleNamespace(fabric="shared_gpu"), exchange)


def test_a_run_goes_on_after_a_notebook_that_fails(tmp_path, capsys):
    sources = {"00-failing": ("print('so far')", "1 / 0"), "01-plain": ("print('to the end')",)}
    for name, cells in sources.items():
        nbformat.write(scrub(notebook_of(*cells)), tmp_path / f"{name}.ipynb")
    paths = [str(tmp_path / f"{name}.ipynb") for name in sources]
    assert tool.main(["run", *paths, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "ZeroDivisionError: division by zero" in said
    assert "2 notebooks on fabric host: failed: 00-failing.ipynb" in said
    partial = nbformat.read(tmp_path / "out" / "00-failing.ipynb", as_version=4)
    assert partial.cells[0].outputs[0].text == "so far\n"
    assert "to the end" in said
