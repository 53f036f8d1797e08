"""The commands: answers, refusals in one line, and a sweep from end to end."""

import json
import math
import re
import shlex
import subprocess
import sys

import pandas as pd
import pytest

from mnnvl_lab import records
from mnnvl_lab.__main__ import COMMANDS, main
from mnnvl_lab.cli.arguments import Parser
from mnnvl_lab.errors import choose
from mnnvl_lab.exchange import FABRICS, MODES
from mnnvl_lab.measure import CLOCKS
from mnnvl_lab.model import FORMATS, require_format
from mnnvl_lab.plots.selection import settings
from mnnvl_lab.records.digest import DIGEST
from mnnvl_lab.records.table import ATTRIBUTE
from mnnvl_lab.routing import parse
from mnnvl_lab.routing.distributions import ROUTINGS
from tests.test_records import origin, samples

SHAPE = ["--hidden", "7168", "--experts", "256", "--top-k", "8"]
SMALL = ["--hidden", "128", "--experts", "4", "--top-k", "2", "--dp", "2"]


def run(*words):
    return subprocess.run([sys.executable, "-m", "mnnvl_lab", *words], capture_output=True, text=True, timeout=100)


def refused(capsys, *words) -> str:
    """The one line with which a command refuses its words."""
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert status == 2
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    return printed.err


def parsers_of(command):
    commands = Parser(prog="x").add_subparsers(parser_class=Parser)
    command.add(commands)
    return commands.choices.values()


def shown_values(command, capsys) -> dict[str, list[str]]:
    """Names and labels by kind that a command's help lists for its options."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    entries = dict(re.findall(r"^  (mode|fabric|routing|clock) +(.*(?:\n {11}.*)*)", text, re.MULTILINE))
    entries["format"] = re.search(r"--format FORMAT.*\n((?:(?! +-).*\n)*?.*?)\(default", text).group(1)
    return {
        "mode": re.findall(r"\w+_\w+|pico", entries["mode"]),
        "fabric": re.findall(r"(\w+) \(", entries["fabric"]),
        "clock": re.findall(r"(\w+):", entries["clock"]),
        "routing": entries["routing"].removeprefix("how tokens choose experts: ").split(", "),
        "format": re.findall(r"\w+", entries["format"]),
    }


@pytest.fixture
def record(tmp_path):
    rows = [
        row for tokens in (1, 16) for mode in ("one_sided", "two_sided") for row in samples(mode=mode, tokens=tokens)
    ]
    return str(records.save(records.new_table(rows, origin()), tmp_path / "record.parquet"))


class TestHelp:
    @pytest.mark.parametrize("command", [command.__name__.rpartition(".")[2] for command in COMMANDS])
    def test_every_command_teaches(self, command, capsys):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert f"examples:\n  python -m mnnvl_lab {command}" in text

    def test_every_value_that_a_help_text_shows_is_accepted(self, capsys):
        """Each list of names in a help is read off it and given to what takes such a name; none of the names lacks."""
        known = {
            "mode": (MODES, lambda name: choose(name, MODES, "mode")),
            "fabric": (FABRICS, lambda name: choose(name, FABRICS, "fabric")),
            "clock": (CLOCKS, lambda name: choose(name, CLOCKS, "clock")),
            "routing": ([cls.label for cls in ROUTINGS], parse),
            "format": (FORMATS, require_format),
        }
        found = shown_values("sweep", capsys)
        assert set(found) == set(known)
        for kind, values in found.items():
            names, accept = known[kind]
            assert {value.partition(":")[0] for value in values} == set(names), kind
            for value in values:
                accept(value)

    @pytest.mark.parametrize(("option", "values"), [("--type", {"png", "svg", "pdf"})])
    def test_every_kind_of_figure_is_drawn(self, option, values, record, tmp_path, capsys):
        for value in values:
            assert main(["compare", record, record, "--out", str(tmp_path), option, value]) == 0
            assert list(tmp_path.glob(f"*.{value}"))

    def test_every_default_that_a_help_text_names_is_the_default(self, capsys):
        for command in COMMANDS:
            (parser,) = parsers_of(command)
            for action in parser._actions:
                if named := re.search(r"\(default ([\w.]+)\)", action.help or ""):
                    default = action.default if isinstance(action.default, list) else [action.default]
                    assert named.group(1) in map(str, default) or named.group(1) == "both", action.option_strings

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_example_parses(self, command):
        (parser,) = parsers_of(command)
        examples = [shlex.split(line)[4:] for line in parser.epilog.splitlines() if line.startswith("  python -m")]
        assert len(examples) >= 2
        for example in examples:
            parser.parse_args(example)


class TestPlan:
    def test_json_has_the_bytes_of_both_modes(self, capsys):
        assert main(["plan", "--tp", "2", "--dp", "4", *SHAPE, "--max-tokens", "2048", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["one_sided"]["workspace_bytes"] == 471_171_456
        for mode in ("one_sided", "two_sided"):
            assert {"workspace_bytes", "allocated_bytes", "mapped_bytes", "reserved_bytes", "regions"} <= set(
                plan[mode]
            )
        assert plan["two_sided"]["prepare_bytes"] == 8 * (2**20 + 256)

    def test_a_named_model_is_its_three_numbers(self, capsys):
        main(["plan", "--dp", "8", "--model", "deepseek-v3", "--json"])
        by_name = json.loads(capsys.readouterr().out)
        main(["plan", "--dp", "8", *SHAPE, "--json"])
        assert json.loads(capsys.readouterr().out)["one_sided"]["regions"] == by_name["one_sided"]["regions"]

    def test_sequence_parallel_sizes_by_the_share(self, capsys):
        main(["plan", "--tp", "4", *SHAPE, "--sp-moe", "--json"])
        assert json.loads(capsys.readouterr().out)["tokens_per_rank"] == 512

    def test_text_shows_layout_and_memory(self, capsys):
        main(["plan", "--tp", "2", "--dp", "2", *SHAPE])
        text = capsys.readouterr().out
        assert "EP groups: [0 1 2 3]" in text
        assert "two_sided" in text

    def test_a_batch_that_does_not_fit_says_how_much_does(self, capsys):
        words = ["plan", "--dp", "8", "--model", "deepseek-v3", "--max-tokens", "1000000"]
        assert main(words) == 1
        printed = capsys.readouterr()
        for text in printed:
            assert "one_sided does not fit: at most" in text
        assert printed.err.count("\n") == 1
        most = re.search(r"at most (\d+) tokens per rank", printed.out).group(1)
        assert main([*words[:-1], most]) == 0
        assert main([*words, "--modes", "Two_Sided"]) == 0
        capsys.readouterr()
        assert main([*words, "--modes", "one_sided", "--json"]) == 1
        assert not json.loads(capsys.readouterr().out)["one_sided"]["fits"]

    @pytest.mark.parametrize("sizes", [["--tp", "4", "--dp", "4"], ["--dp", "16"]])
    @pytest.mark.parametrize("gpu", ["b200", "H100"])
    def test_two_nodes_without_nvlink_between_them_are_refused(self, sizes, gpu, capsys):
        words = ["plan", *sizes, "--gpus-per-node", "8", "--model", "DeepSeek-V3", "--format", "nvfp4"]
        assert main([*words, "--gpu", gpu]) == 1
        printed = capsys.readouterr()
        for mode in ("one_sided", "two_sided"):
            assert f"{mode} cannot serve this: an EP group of 16 ranks (such as 0 to 15) spans 2 NVLink" in printed.err
        assert "plan for gb200" in printed.out
        assert main([*words, "--gpu", "gb200"]) == 0

    def test_wide_shows_bytes(self, capsys):
        main(["plan", "--dp", "2", *SHAPE, "--max-tokens", "4096", "--wide"])
        assert "226.0 MiB (236,978,176 B)" in capsys.readouterr().out

    def test_it_loads_nothing_heavy(self):
        code = (
            "import sys; from mnnvl_lab.__main__ import main; main(sys.argv[1:]);"
            "print([m for m in ('torch', 'flashinfer', 'ipyparallel', 'matplotlib') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "plan", *SHAPE], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["plan", "--tp", "two", *SHAPE], "'two' is no whole number"),
            (["plan", "--tp", "0", *SHAPE], "tp is 0"),
            (["plan"], "--hidden, --experts, --top-k not given"),
            (["plan", "--model", "deepseek-v3", "--top-k", "4"], "its own shape"),
            (["plan", "--model", "deepseek-v4"], "deepseek-v3"),
            (["plan", *SHAPE, "--format", "bf61"], "bf16"),
            (["plan", *SHAPE, "--gpu", "h10"], "h100"),
            (["plan", *SHAPE, "--max-tokens", "-1"], "max_tokens is -1"),
            (["plan", *SHAPE, "--max-tokens", str(10**26)], "it must be at most 2147483647"),
            (["plan", *SHAPE, "--dp", "100000000"], "a layout has at most 65536"),
            (["plan", *SHAPE, "--modes", "all_to_all"], "choose one of one_sided, two_sided"),
            (["plan", *SHAPE, "--colour"], "unrecognized arguments: --colour"),
            (["plann"], "invalid choice: 'plann'"),
            ([], "required"),
            (["sweep", *SMALL, "--out", "x", "--fabric", "ether"], "fabric 'ether' is not known"),
            (["sweep", *SMALL, "--out", "x", "--routing", "zip:1"], "zipf"),
            (["sweep", *SMALL, "--out", "x", "--format", "fp9"], "fp9"),
            (["sweep", *SMALL, "--out", "x", "--clock", "sun"], "clock 'sun' is not known"),
            (["sweep", *SMALL], "--out"),
            (["sweep", *SMALL, "--out", "x", "--modes", "three_sided"], "mode 'three_sided' is not known"),
            (["sweep", *SMALL[:-3], "5", "--dp", "2", "--out", "x"], "top_k is 5"),
            (["sweep", *SMALL, "--out", "x", "--samples", "0"], "must lie in [1, 1000000]"),
            (["sweep", *SMALL, "--out", "x", "--samples", "-5"], "-5 is out of range"),
            (["sweep", *SMALL, "--out", "x", "--warmup", "-5"], "-5 is out of range"),
            (["sweep", *SMALL, "--out", "x", "--budget", "-5"], "'-5' is no number in [0, 86400]"),
            (["sweep", *SMALL, "--out", "x", "--budget", "nan"], "'nan' is no number in [0, 86400]"),
            (["sweep", *SMALL, "--out", "x", "--seed", str(2**64 - 1)], "18446744073709551615 is out of range"),
            (["sweep", *SMALL, "--out", "x", "--seed", "-1"], "-1 is out of range"),
            (["sweep", *SMALL, "--out", "x", "--tokens", "-1"], "-1 is out of range"),
            (["sweep", *SMALL, "--out", "x", "--tokens", "1,two"], "'two' is no whole number"),
            (["sweep", *SMALL, "--out", "x", "--tokens", "1,,2"], "'' is no whole number"),
            (["sweep", *SMALL, "--out", "x", "--tokens", "1,2,3"], "3 counts but ep_size is 2"),
            (["sweep", *SMALL, "--out", "x", "--tokens", str(10**26)], "is out of range"),
            (["sweep", *SMALL, "--out", "x", "--tokens", "2000000000"], "tokens is 2000000000: it must be at most"),
            (["sweep", *SMALL, "--out", "x", "--pp", "4000"], "at most 1024"),
            (["sweep", *SMALL, "--out", "x", "--pp", "200"], "at most 256"),
            (["sweep", *SMALL, "--out", "x", "--tokens", "4000000", "--pp", "50"], "fewer tokens"),
            (["sweep", *SMALL, "--out", "x", "--max-tokens", "0"], "0 is out of range"),
            (["sweep", *SMALL, "--out", "x", "--tokens", "8", "--max-tokens", "4"], "max_tokens is 4"),
            (["sweep", *SMALL, "--out", "x", "--tokens", "8", "--runtime-max-tokens", "4"], "runtime_max_tokens is 4"),
            (["sweep", *SMALL, "--out", "x", "--clock", "graph"], "it needs a CUDA device"),
            (["sweep", *SMALL, "--out", "x", "--routing", "hot_expert:0.5:9"], "hot expert is 9"),
            (["sweep", *SMALL, "--out", "x", "--routing", "hot_rank:0.5:2"], "hot rank is 2"),
            (["sweep", *SMALL, "--out", ""], "'' names no path"),
            (
                ["sweep", "--hidden", "128", "--experts", str(10**9), "--top-k", "2", "--out", "x"],
                "experts is 1000000000",
            ),
            (["sweep", "--hidden", str(10**26), "--experts", "4", "--top-k", "2", "--out", "x"], "at most 2147483647"),
            (["plot", "x", "--out", ""], "'' names no path"),
            (["plot", "", "--out", "x"], "'' names no path"),
            (["compare", "", "x"], "'' names no path"),
            (["compare", "a", "b", "--alpha", "0"], "'0' is no number in [1e-12, 0.99]"),
            (["compare", "a", "b", "--alpha", "2"], "'2' is no number in [1e-12, 0.99]"),
            (["compare", "a", "b", "--alpha", "-1"], "'-1' is no number in [1e-12, 0.99]"),
            (["compare", "a", "b", "--alpha", "nan"], "'nan' is no number in [1e-12, 0.99]"),
            (["compare", "a", "b", "--alpha", "x"], "'x' is no number"),
            (["compare", "a", "b", "--out", ""], "'' names no path"),
            (["plot", "nowhere.parquet", "--out", "x"], "nowhere.parquet: no such file"),
            (["compare", "nowhere.parquet", "nowhere.parquet"], "nowhere.parquet: no such file"),
        ],
    )
    def test_is_one_line_with_the_value(self, words, said, capsys):
        assert said in refused(capsys, *words)

    @pytest.mark.parametrize("command", [command.__name__.rpartition(".")[2] for command in COMMANDS])
    def test_an_error_points_to_the_commands_own_help(self, command, capsys):
        assert f"see python -m mnnvl_lab {command} --help" in refused(capsys, command, "--colour", "--out", "x")
        assert f"see python -m mnnvl_lab {command} --help" in refused(capsys, command, "--out")

    @pytest.mark.parametrize("latency_us", [math.nan, math.inf, -1.0, 0.0])
    def test_latencies_that_are_none_are_not_drawn_or_compared(self, latency_us, record, tmp_path, capsys):
        table = records.load(record)
        table.loc[3, "latency_us"] = latency_us
        table.attrs.pop(DIGEST)
        table.attrs[ATTRIBUTE] = table.attrs[ATTRIBUTE] | {"schema": 1}  # files that old had no digest
        spoiled = tmp_path / "spoiled.parquet"
        table.to_parquet(spoiled)  # past what `save` may refuse
        assert "spoiled.parquet" in refused(capsys, "plot", str(spoiled), "--out", str(tmp_path / "figures"))
        assert "latency_us" in refused(capsys, "compare", record, str(spoiled))

    def test_a_record_without_rows(self, record, tmp_path, capsys):
        empty = tmp_path / "empty.parquet"
        table = records.load(record)
        table.iloc[:0].to_parquet(empty)
        assert "empty.parquet" in refused(capsys, "plot", str(empty), "--out", str(tmp_path / "figures"))
        assert "empty.parquet" in refused(capsys, "compare", str(empty), record)

    def test_a_file_that_is_no_record(self, tmp_path, capsys):
        foreign = tmp_path / "notes.txt"
        foreign.write_text("hello")
        assert "not a record file" in refused(capsys, "plot", str(foreign), "--out", str(tmp_path))

    def test_a_figure_directory_that_cannot_be(self, record, capsys):
        assert "File exists" in refused(capsys, "plot", record, "--out", record)


class TestPlot:
    def test_draws_every_kind_of_figure(self, record, tmp_path, capsys):
        assert main(["plot", record, "--out", str(tmp_path / "figures")]) == 0
        drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
        assert drawn == {
            "latency",
            "memory-by-tokens",
            "memory-by-ep_size",
            "workspace-one_sided",
            "workspace-two_sided",
            "traffic",
            "ranks",
        }
        assert len(capsys.readouterr().out.splitlines()) == len(drawn)

    def test_files_of_another_device_do_not_share_a_figure(self, record, tmp_path, capsys):
        other = records.save(records.new_table(samples(), origin(device="H100")), tmp_path / "other.parquet")
        assert "device differs" in refused(capsys, "plot", record, str(other), "--out", str(tmp_path))

    def test_settings_are_named_by_what_varies(self):
        table = pd.DataFrame({"phase": ["round", "round", "dispatch"], "tp": [1, 2, 1], "dp": [4, 4, 4]})
        parts = {name: len(part) for name, part in settings(table, ("phase", "tp", "dp"))}
        assert parts == {"-round-tp1": 1, "-round-tp2": 1, "-dispatch-tp1": 1}
        assert [name for name, _ in settings(table, ("dp",))] == [""]


class TestCompare:
    def test_says_what_is_slower(self, record, tmp_path, capsys):
        table = records.load(record)
        slower = table["latency_us"].where(table["tokens"] == 1, table["latency_us"] * 9)
        after = records.save(table.assign(latency_us=slower), tmp_path / "after.parquet")
        assert main(["compare", record, str(after)]) == 0
        text = capsys.readouterr().out
        assert "2 same, 0 faster, 2 slower" in text


class TestDoctor:
    def test_json_answers_for_each_fabric(self, capsys):
        assert main(["doctor", "--json"]) == 0
        assert set(json.loads(capsys.readouterr().out)["fabrics"]) == {"host", "shared_gpu", "nvlink"}


class TestSweep:
    def test_words_become_axes(self, monkeypatch, capsys, tmp_path):
        asked = {}

        def fake(sweep, **options):
            asked.update(sweep=sweep, **options)
            return records.new_table(samples(), origin())

        monkeypatch.setattr("mnnvl_lab.measure.run.run", fake)
        words = [
            "--tokens",
            "1",
            "64",
            "--modes",
            "all_to_all",
            "--routing",
            "zipf:1.2",
            "--samples",
            "7",
            "--seed",
            "3",
        ]
        assert main(["sweep", *SMALL, *words, "--out", str(tmp_path / "x.parquet"), "--resume", "--quiet"]) == 0
        sweep = asked["sweep"]
        assert (sweep.tokens, sweep.modes, sweep.seed) == ((1, 64), ("all_to_all",), 3)
        assert str(sweep.routings[0]) == "zipf:1.2"
        assert sweep.sampling.max_samples == sweep.sampling.min_samples == 7
        assert (asked["resume"], asked["progress"]) == (True, False)
        assert "2 points on fabric host" in capsys.readouterr().out

    def test_three_numbers_of_tokens_are_apart(self, monkeypatch, tmp_path):
        asked = []
        monkeypatch.setattr(
            "mnnvl_lab.measure.run.run",
            lambda sweep, **_: asked.append(sweep) or records.new_table(samples(), origin()),
        )
        words = [*SMALL, "--dp", "4", "--modes", "One-Sided", "--out", str(tmp_path / "x.parquet")]
        counts = ["--tokens", "16", "1,4,0,128", "--runtime-max-tokens", "200", "--max-tokens", "256", "512"]
        assert main(["sweep", *words, *counts]) == 0
        points = list(asked[0].points())
        assert [point.load.tokens for point in points] == [16, 16, (1, 4, 0, 128), (1, 4, 0, 128)]
        assert [point.exchange.max_tokens for point in points] == [256, 512, 256, 512]
        assert {point.load.runtime_max for point in points} == {200}

    def test_padding_and_replicas_reach_the_load(self, monkeypatch, tmp_path):
        asked = []
        monkeypatch.setattr(
            "mnnvl_lab.measure.run.run",
            lambda sweep, **_: asked.append(sweep) or records.new_table(samples(), origin()),
        )
        words = [*SMALL, "--dp", "4", "--modes", "one_sided", "--tokens", "16", "--out", str(tmp_path / "x.parquet")]
        padding = ["--padding", "0", "8", "0,8,8,8", "--padding-id", "E", "--invalid-ids", "drop"]
        assert main(["sweep", *words, *padding]) == 0
        assert main(["sweep", *words, "--padding", "8", "--padding-id", "1", "--replicas", "1", "2"]) == 0
        loads = [point.load for sweep in asked for point in sweep.points()]
        assert [load.padding and load.padding.rows for load in loads] == [None, 8, (0, 8, 8, 8), 8, 8]
        assert [load.padding and load.padding.expert_id for load in loads] == [None, "E", "E", 1, 1]
        assert [load.padding and load.padding.invalid_ids for load in loads][1::2] == ["drop", "as_kernel"]
        assert [load.replicas for load in loads] == [1, 1, 1, 1, 2]

    def test_an_interrupted_sweep_says_how_to_go_on(self, monkeypatch, capsys):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("mnnvl_lab.measure.run.run", interrupted)
        assert main(["sweep", *SMALL, "--out", "x.parquet"]) == 130
        assert "--resume" in capsys.readouterr().err

    def test_from_ranks_to_figures(self, tmp_path):
        out = str(tmp_path / "sweep.parquet")
        words = ["sweep", *SMALL, "--tokens", "1", "8", "--samples", "6", "--out", out, "--quiet"]
        first = run(*words)
        assert first.returncode == 0, first.stderr
        table = records.load(out)
        assert set(table["mode"]) == {"one_sided", "two_sided"}
        assert set(table["checked"]) <= {"exact", "bounded"}
        again = run(*words)
        assert again.returncode == 2
        assert "exists already" in again.stderr
        resumed = run(*words[:-1], "--modes", "one_sided", "two_sided", "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert len(records.load(out)) == len(table)
        assert run("plot", out, "--out", str(tmp_path / "figures")).returncode == 0
        assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["sweep.parquet"]
