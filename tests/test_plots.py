"""Figures by their labels and the data of their artists; never by pixels."""

import importlib
from functools import partial
from itertools import pairwise
from types import MappingProxyType

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from mnnvl_lab import datasets, link_rates, plots, records
from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.hardware import require_gpu
from mnnvl_lab.layout import Layout
from mnnvl_lab.plots.lines import spread
from mnnvl_lab.plots.style import LINE_STYLES, contrast_color, format_bytes, line_styles
from mnnvl_lab.routing import Load, parse, traffic
from mnnvl_lab.workspace import OneSidedWorkspace
from tests.test_records import origin, samples

TOKENS = (1, 16, 256)


@pytest.fixture
def ax():
    return Figure(figsize=(7, 4), layout="constrained").subplots()


@pytest.fixture
def measured():
    random = np.random.default_rng(0)
    rows = [
        row
        for mode, base in (("one_sided", 50), ("two_sided", 90))
        for tokens in TOKENS
        for row in samples((base + tokens) * random.gamma(50, 0.02, (20, 4)), mode=mode, tokens=tokens)
    ]
    return records.new_table(rows, origin())


FOUR_RANKS = Layout(tp=2, dp=2)


def needs(*, tokens=(1024,), layouts=(FOUR_RANKS,)):
    return [
        ExchangeShape(layout=layout, max_tokens=n, hidden=7168, experts=256, top_k=8)
        for layout in layouts
        for n in tokens
    ]


def words(ax, gid):
    return [text.get_text() for text in ax.texts if text.get_gid() == gid]


def line_of(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


class TestLatency:
    def test_lines_are_the_medians_of_the_slowest_rank(self, measured, ax):
        plots.latency(measured, ax=ax)
        for mode in ("one_sided", "two_sided"):
            line = line_of(ax, LINE_STYLES[mode].label)
            expected = [
                measured[(measured["mode"] == mode) & (measured["tokens"] == n)]
                .pivot(index="iteration", columns="rank", values="latency_us")
                .max(axis=1)
                .median()
                for n in TOKENS
            ]
            np.testing.assert_allclose(line.get_ydata(), expected)
            assert list(line.get_xdata()) == list(TOKENS)
            assert line.get_color() == LINE_STYLES[mode].color

    def test_labels_come_from_the_registry(self, measured, ax):
        plots.latency(measured, ax=ax)
        assert ax.get_xlabel() == records.require_column("tokens").axis_label
        assert ax.get_ylabel() == "Latency (µs)"
        assert ax.get_xscale() == ax.get_yscale() == "log"
        assert words(ax, "label") == ["one-sided", "two-sided"]

    def test_the_caption_names_fabric_processes_device_and_clock(self, measured, ax):
        plots.latency(measured, ax=ax)
        (caption,) = words(ax, "caption")
        for part in ("host", "4 processes", "2-core Test Processor", "eager clock", "slowest rank"):
            assert part in caption.replace("\n", " ")

    def test_bounds_are_drawn_and_named(self, measured, ax):
        bounds = pd.DataFrame({"tokens": TOKENS, "latency_us": [1.0, 16.0, 256.0], "bound": "copied once"})
        plots.latency(measured, bounds=bounds, ax=ax)
        assert list(line_of(ax, "copied once").get_ydata()) == [1, 16, 256]
        assert "copied once" in words(ax, "label")

    @pytest.mark.parametrize(("least", "in_view"), [(20.0, True), (0.001, False)])
    def test_a_bound_near_the_samples_is_in_view_and_one_far_below_does_not_press_them_flat(
        self, measured, ax, least, in_view
    ):
        bounds = pd.DataFrame({"tokens": TOKENS, "latency_us": [least, 40.0, 256.0], "bound": "copied once"})
        plots.latency(measured, bounds=bounds, ax=ax)
        bottom = ax.get_ylim()[0]
        assert (bottom <= least) == in_view
        assert bottom < records.slowest_rank(measured)["latency_us"].min()

    def test_unchecked_samples_are_called_so(self, measured, ax):
        plots.latency(measured.assign(checked="no"), ax=ax)
        assert "NOT CHECKED" in words(ax, "caption")[0]

    @pytest.mark.parametrize(
        ("change", "column"),
        [({"phase": "dispatch"}, "phase"), ({"clock": "graph"}, "clock"), ({"hidden": 9}, "hidden")],
    )
    def test_what_does_not_compare_is_refused(self, measured, ax, change, column):
        mixed = pd.concat([measured, measured.assign(**change)])
        with pytest.raises(Refused, match=f"{column} has the values .*query"):
            plots.latency(mixed, ax=ax)

    def test_two_fabrics_never_share_a_figure_unless_told_apart(self, measured, ax):
        mixed = pd.concat([measured, measured.assign(fabric="nvlink", mode="all_to_all")])
        with pytest.raises(Refused, match="fabric has the values host, nvlink: one line would mix them"):
            plots.latency(mixed, ax=ax)
        one_mode = measured[measured["mode"] == "one_sided"]
        plots.latency(pd.concat([one_mode, one_mode.assign(fabric="nvlink")]), hue="fabric", ax=ax)
        assert "host, nvlink" in words(ax, "caption")[0]

    def test_absent_columns_are_refused(self, measured, ax):
        with pytest.raises(Refused, match="is no column of this table"):
            plots.latency(measured, x="device", ax=ax)
        with pytest.raises(Refused, match="the table is empty: a figure needs rows"):
            plots.latency(measured.iloc[:0], ax=ax)

    def test_no_tokens_at_all_have_a_place(self, measured, ax):
        plots.latency(measured.assign(tokens=measured["tokens"] - 1), ax=ax)
        assert ax.get_xscale() == "symlog"
        assert 0 in ax.get_xticks()


H100_PAIR = {"device": "2 x NVIDIA H100 80GB HBM3", "topology": "NVLink x 18, 1 of 1 pairs peer to peer"}


class TestLimits:
    PAIR = MappingProxyType({"fabric": "nvlink", "tp": 1, "dp": 2, "ep_size": 2, "tokens": 4096})
    SHAPE = MappingProxyType({"hidden": 7168, "experts": 256, "top_k": 8})

    def pair(self, **fields):
        further = {name: fields.pop(name) for name in ("device", "topology") if name in fields}
        return records.new_table(samples(**(self.PAIR | self.SHAPE | fields)), origin(**(H100_PAIR | further)))

    def bound_us(self, table, **more):
        (latency_us,) = plots.lower_bounds(table, **more)["latency_us"]
        return latency_us

    def test_two_h100_are_bound_by_what_bare_kernels_reached(self):
        """58.8 MB of rows, ids and weights there and 58.5 MB of rows back, at the recorded 356 and 326 GB/s."""
        rates = link_rates.limits(datasets.load_recorded("h100x2_nvlink_links", kind="links"))
        both_ways = rates.query("direction == 'both_ways'").set_index("quantity")["gigabytes_per_s"] / 2
        there_us, back_us = 58.8e3 / both_ways["kernel_stores"], 58.5e3 / both_ways["kernel_loads"]
        for phase, latency_us in {"dispatch": there_us, "combine": back_us, "round": there_us + back_us}.items():
            assert self.bound_us(self.pair(phase=phase)) == pytest.approx(latency_us, rel=0.002)

    def test_no_recorded_point_is_below_its_bound(self):
        for name in datasets.recorded_names():
            if "nvlink" in name and name.rsplit("_", 1)[1] in ("bf16", "fp8", "kernel", "again", "stragglers"):
                table = datasets.load_recorded(name)
                for _, part in table.groupby(["clock", "phase", "routing", "mode"]):
                    bounds = plots.lower_bounds(part)
                    if bounds is not None:
                        slowest = records.slowest_rank(part).groupby("tokens")["latency_us"].min()
                        assert (slowest.reindex(bounds["tokens"]).to_numpy() > bounds["latency_us"]).all(), name

    def test_combine_in_fp8_moves_half_of_the_bytes_back(self):
        bf16, fp8 = (self.bound_us(self.pair(phase="combine", low_precision_combine=low)) for low in (False, True))
        assert fp8 == pytest.approx(bf16 / 2)
        there = [self.bound_us(self.pair(phase="dispatch", low_precision_combine=low)) for low in (False, True)]
        assert there[0] == there[1]
        whole = self.bound_us(self.pair(low_precision_combine=True))
        assert whole == pytest.approx(there[0] + fp8)

    def test_options_that_move_other_bytes_have_bounds_of_their_own(self):
        one = samples(**self.PAIR, **self.SHAPE, low_precision_combine=False)
        other = samples(**self.PAIR, **self.SHAPE, mode="two_sided", low_precision_combine=True)
        bounds = plots.lower_bounds(records.new_table([*one, *other], origin(**H100_PAIR))).set_index("bound")[
            "latency_us"
        ]
        names = ["least for the bytes, combine not in fp8", "least for the bytes, combine in fp8"]
        assert bounds.index.tolist() == names
        assert bounds.iloc[1] < bounds.iloc[0]

    @pytest.mark.parametrize("counts", ["96,0", "0,96", "96,32"])
    def test_a_ragged_load_is_bound_by_its_own_rows(self, counts):
        table = self.pair(tokens=96, phase="dispatch")
        load = Load(routing=parse("uniform"), tokens=tuple(map(int, counts.split(","))))
        rows_RR = traffic.rows_RR(load, experts=256, top_k=8, ep_size=2, logical=False)
        sent_bytes = max(rows_RR.sum(axis=0).max(), rows_RR.sum(axis=1).max()) * (7168 * 2 + 64)
        link = link_rates.measured_link(datasets.load_recorded("h100x2_nvlink_links", kind="links"))
        ragged_us = self.bound_us(table.assign(token_counts=counts))
        assert ragged_us == pytest.approx(sent_bytes / link.stores_gigabytes_per_s / 1e3)
        assert self.bound_us(table) >= ragged_us

    def test_a_ragged_load_on_host_copies_fewer_rows(self):
        table = records.new_table(samples(), origin(memory_copy_gigabytes_per_s=10.0))
        assert self.bound_us(table.assign(token_counts="16,0,0,0")) < 0.3 * self.bound_us(table)

    def test_other_devices_of_the_same_name_do_not_get_the_rates_of_the_pair(self):
        """Eight GPUs behind a switch, fewer links, no links: what is on paper, or nothing."""
        pair_us = self.bound_us(self.pair())
        eight = self.pair(device="8 x NVIDIA H100 80GB HBM3", topology="NVLink x 18, 28 of 28 pairs peer to peer")
        nvl = self.pair(device="2 x NVIDIA H100 NVL", topology="NVLink x 12, 1 of 1 pairs peer to peer")
        pcie = self.pair(device="2 x NVIDIA H100 PCIe", topology="NVLink x 0, 0 of 1 pairs peer to peer")
        assert self.bound_us(nvl) == pytest.approx(1.5 * self.bound_us(eight))
        assert self.bound_us(eight) < pair_us
        assert "nominal" in plots.lower_bounds(eight)["basis"].iloc[0]
        assert plots.lower_bounds(pcie) is None

    def test_rates_measured_on_the_machine_itself_take_precedence(self):
        links = datasets.load_recorded("h100x2_nvlink_links", kind="links")
        slower = links.assign(latency_us=2 * links["latency_us"])
        slower.attrs = links.attrs
        assert self.bound_us(self.pair(), links=slower) == pytest.approx(2 * self.bound_us(self.pair()))

    def test_without_the_checkout_the_rates_are_those_on_paper(self, monkeypatch, tmp_path):
        monkeypatch.setattr(datasets, "recorded_names", partial(datasets.recorded_names, folder=tmp_path))
        assert "nominal" in plots.lower_bounds(self.pair())["basis"].iloc[0]

    def test_several_machines_have_no_bound_in_common(self):
        other = self.pair(device="2 x NVIDIA H200")
        both = records.join([self.pair(), other], by=("device",))
        assert plots.lower_bounds(both) is None

    def test_host_copies_all_rows_through_one_memory(self):
        table = records.new_table(samples(), origin(memory_copy_gigabytes_per_s=10.0))
        sent = (64 * 2 + 2 * 8) + 64 * 2
        bound = plots.lower_bounds(table)["latency_us"].iloc[0]
        assert 4 * 16 * sent / 10e3 <= bound <= 4 * 16 * 2 * sent / 10e3

    @pytest.mark.parametrize(
        "unknown",
        [{"phase": "prepare"}, {"routing": "replay:abc"}, {"fabric": "shared_gpu"}, {"fabric": "nvlink"}, {}],
    )
    def test_no_bound_where_none_is_known(self, unknown):
        assert plots.lower_bounds(records.new_table(samples(**unknown), origin())) is None

    def test_looking_up_a_bound_measures_nothing(self, monkeypatch):
        def measure(*_, **__):
            raise AssertionError("a bound was measured")

        provenance = importlib.import_module("mnnvl_lab.records.provenance")  # `records.provenance` is the function
        monkeypatch.setattr(provenance, "memory_copy_gigabytes_per_s", measure)
        monkeypatch.setattr(provenance, "find_gpus", measure)
        assert self.bound_us(self.pair()) > 0


class TestMemory:
    def test_lines_are_the_bytes_of_the_workspaces(self, ax):
        tokens = (128, 1024, 4096)
        plots.memory(plots.memory_table(needs(tokens=tokens), gpu=require_gpu("h100")), ax=ax)
        one_sided = [OneSidedWorkspace.of(need).workspace_bytes for need in needs(tokens=tokens)]
        assert list(line_of(ax, "one-sided").get_ydata()) == one_sided
        assert len(set(line_of(ax, "two-sided").get_ydata())) == 1
        assert "132 multiprocessors, not measured" in words(ax, "caption")[0]

    def test_by_ep_size(self, ax):
        table = plots.memory_table(needs(layouts=[Layout(dp=n) for n in (1, 2, 8)]), gpu=require_gpu("h100"))
        plots.memory(table, x="ep_size", y="allocated_bytes", ax=ax)
        assert ax.get_xlabel() == "Ranks of the EP group"
        assert ax.get_ylabel() == records.require_column("allocated_bytes").label
        assert all(value % 2**21 == 0 for line in ax.lines for value in line.get_ydata())


class TestRegions:
    def test_widths_are_to_scale_on_every_level(self, ax):
        regions = plots.regions_table(OneSidedWorkspace.of(needs()[0]).regions)
        plots.region_map(regions, ax=ax)
        drawn = [(bar.get_label(), bars.patches[0]) for bars in ax.containers for bar in [bars]]
        widths = {name: bar.get_width() for name, bar in drawn if not name.startswith("_")}
        sizes = regions.set_index("region")["size_bytes"]
        assert widths["dispatch"] / widths["combine"] == pytest.approx(sizes["dispatch"] / sizes["combine"])
        assert widths["send_counters"] == pytest.approx(4 * widths["flag_val"])

    def test_every_region_is_named_with_its_size(self, ax):
        regions = plots.regions_table(OneSidedWorkspace.of(needs()[0]).regions)
        plots.region_map(regions, ax=ax)
        texts = {text.get_text().replace("\n", " ") for text in ax.texts}
        for row in regions.itertuples():
            assert f"{row.region.replace('_', ' ')} {format_bytes(row.size_bytes)}" in texts

    def test_overlapping_and_empty_regions_are_left_out(self):
        names = set(plots.regions_table(OneSidedWorkspace.of(needs()[0]).regions)["region"])
        assert not names & {"payload_data", "eplb_gathered_stats"}


class TestTraffic:
    MATRIX = np.array([[5, 1, 2], [0, 7, 3], [4, 4, 9]])

    def test_cells_are_the_matrix_and_sums_leave_out_the_diagonal(self, ax):
        plots.traffic(plots.traffic_table(self.MATRIX), ax=ax)
        np.testing.assert_array_equal(ax.images[0].get_array(), self.MATRIX)
        assert words(ax, "sent") == ["3", "3", "8"]
        assert words(ax, "received") == ["4", "5", "5"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("Target rank", "Source rank")
        assert words(ax, "subtitle") == ["the fullest rank receives 1.07 times the mean"]

    def test_bytes_share_one_unit(self, ax):
        plots.traffic(plots.traffic_table(self.MATRIX * 2**20, value="moved_bytes"), hue="moved_bytes", ax=ax)
        assert ax.get_title(loc="left").endswith("in MiB")
        np.testing.assert_allclose(ax.images[0].get_array(), self.MATRIX)

    def test_many_ranks_get_a_colour_bar_instead_of_numbers(self, ax):
        plots.traffic(plots.traffic_table(np.ones((32, 32), dtype=int)), ax=ax)
        assert len(ax.figure.axes) == 2
        assert not words(ax, "sent")


class TestRankGrid:
    LAYOUT = Layout(tp=2, dp=2, pp=2, gpus_per_node=4)

    @pytest.mark.parametrize(("hue", "group"), [("ep_group", "ep"), ("dp_group", "dp"), ("tp_group", "tp")])
    def test_ranks_share_a_colour_exactly_within_a_group(self, ax, hue, group):
        plots.rank_grid(self.LAYOUT.to_frame(), hue=hue, ax=ax)
        colors = {int(p.get_gid().split()[1]): p.get_facecolor() for p in ax.patches if p.get_gid()}
        assert len(colors) == 8
        for one in colors:
            for other in colors:
                assert (colors[one] == colors[other]) == (other in self.LAYOUT.group_of(group, one))

    def test_rows_columns_stages_and_groups_are_named(self, ax):
        plots.rank_grid(self.LAYOUT.to_frame(), ax=ax)
        texts = [text.get_text() for text in ax.texts]
        for expected in ("DP 0", "DP 1", "TP 0", "TP 1", "pipeline stage 1", "rank 7", "4 ranks: 0, 1, 4, 5"):
            assert expected in texts

    def test_another_hue_is_refused(self, ax):
        with pytest.raises(Refused, match="ep_group, dp_group"):
            plots.rank_grid(self.LAYOUT.to_frame(), hue="mode", ax=ax)


class TestLook:
    def test_drawing_changes_no_global_setting(self, measured, ax):
        before = dict(mpl.rcParams)
        plots.latency(measured, ax=ax)
        assert dict(mpl.rcParams) == before

    def test_modes_keep_their_colours_whatever_else_is_drawn(self):
        assert line_styles(["two_sided"])["two_sided"] == line_styles(["all_to_all", "two_sided"])["two_sided"]
        assert len({stroke.color for stroke in LINE_STYLES.values()}) == len(LINE_STYLES)

    def test_words_stand_out_on_light_and_dark(self):
        assert contrast_color("#000000") == "white" != contrast_color("#F0E442")

    @pytest.mark.parametrize(
        ("size", "shown"), [(0, "0 B"), (32, "32 B"), (1536, "1.5 KiB"), (471_171_456, "449 MiB"), (2**40, "1 TiB")]
    )
    def test_sizes_in_words(self, size, shown):
        assert format_bytes(size) == shown

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_spread_keeps_order_and_distance(self, places):
        moved = spread(sorted(places), 0.1, low=0, high=1)
        assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(moved))
        assert min(moved) >= -1e-9
        assert max(moved) <= 1 + 1e-9

    def test_spread_leaves_alone_what_has_room(self):
        assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
