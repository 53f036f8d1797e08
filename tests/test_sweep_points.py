"""A sweep takes what the command line takes, and refuses the rest in words before any process starts."""

import pickle
from contextlib import suppress
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mnnvl_lab.errors import Refused, shown
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Delay, Point, Sampling, Sweep
from mnnvl_lab.model import MODELS
from mnnvl_lab.records import point_key
from mnnvl_lab.routing import HotExpert, Load, Replay, Uniform, Zipf

SHAPE = {"hidden": 64, "experts": 8, "top_k": 2}
PAIR = {"layouts": Layout(dp=2), "modes": "one_sided"} | SHAPE


def one(**changes):
    (point,) = Sweep(**PAIR | {"tokens": 4} | changes).points()
    return point


def keys(sweep):
    return [point_key(point.columns | {"fabric": sweep.fabric}) for point in sweep.points()]


def test_a_size_that_the_payloads_cannot_be_packed_at_is_refused_with_the_sweep():
    odd = {"layouts": Layout(dp=3), "modes": "one_sided", "hidden": 2880, "experts": 6, "top_k": 2, "formats": "mxfp8"}
    assert Sweep(**odd, tokens=4).points()
    with pytest.raises(Refused, match=r"runtime_max_tokens is 5: .* needs a multiple of 2"):
        Sweep(**odd, tokens=5)


class TestWhatIsTaken:
    def test_one_value_stands_for_an_axis(self):
        sweep = Sweep(layouts=Layout(tp=2), tokens=16, modes="one_sided", routings="zipf:1.2", model="DeepSeek-V3")
        (point,) = sweep.points()
        assert point.exchange.hidden == 7168
        assert point.load == Load(routing=Zipf(exponent=1.2), tokens=16)
        assert sweep.layouts == (Layout(tp=2),)

    def test_names_in_any_case_and_with_hyphens(self):
        sweep = Sweep(
            **PAIR | {"modes": ["Two-Sided", "ONE_SIDED"]}, tokens=1, formats="BF16", fabric="Host", clocks="EAGER"
        )
        assert sweep.modes == ("two_sided", "one_sided")
        assert (sweep.formats, sweep.fabric, sweep.clocks) == (("bf16",), "host", ("eager",))
        assert one(options={"One-Sided": {"combine_dtype": "FP32"}}).exchange.combine_dtype == "fp32"

    @pytest.mark.parametrize(
        ("changes", "clock"),
        [
            ({}, "eager"),
            ({"fabric": "nvlink"}, "graph"),
            ({"fabric": "shared_gpu"}, "graph"),
            ({"fabric": "nvlink", "delay": Delay(delay_us=5)}, "eager"),
            ({"fabric": "nvlink", "cold_l2": True}, "eager"),
            ({"fabric": "nvlink", "clocks": "kernel"}, "kernel"),
        ],
    )
    def test_the_clock_follows_the_fabric_unless_it_is_given(self, changes, clock):
        assert Sweep(**PAIR, tokens=1, **changes).clocks == (clock,)

    def test_numbers_of_numpy(self):
        sweep = Sweep(**PAIR, tokens=np.array([1, 4]), seed=np.int64(7))
        assert [type(tokens) for tokens in sweep.tokens] == [int, int]
        assert type(sweep.seed) is int
        assert one(tokens=(np.array([3, 0]),)).load.tokens == (3, 0)

    def test_a_model_beside_the_same_numbers_and_beside_others(self):
        model = MODELS["deepseek-v3"]
        named = Sweep.of_model(model, layouts=Layout(dp=2), tokens=1)
        assert replace(named, tokens=(2, 4)).tokens == (2, 4)
        assert Sweep(**vars(named) | {"clocks": "eager"}) == named
        with pytest.raises(Refused, match="hidden is 64 but deepseek-v3 has 7168: pass the model or the numbers"):
            Sweep(**PAIR, tokens=1, model="deepseek-v3")

    def test_it_survives_a_process_border(self):
        sweep = Sweep(**PAIR, tokens=1, options={"one_sided": {"max_tokens": 16}})
        assert pickle.loads(pickle.dumps(sweep)) == sweep


class TestThreeCounts:
    """Capacity, the runtime max and the tokens are three numbers."""

    def test_they_default_to_the_fullest_rank(self):
        point = one(tokens=((3, 5),))
        assert (point.load.tokens, point.load.runtime_max, point.exchange.max_tokens) == ((3, 5), 5, 5)
        idle = one(tokens=0)
        assert (idle.load.tokens, idle.load.runtime_max, idle.exchange.max_tokens) == (0, 1, 1)

    def test_each_can_be_given(self):
        point = one(tokens=128, runtime_max_tokens=512, max_tokens=8192)
        assert (point.load.tokens, point.load.runtime_max, point.exchange.max_tokens) == (128, 512, 8192)
        assert one(options={"one_sided": {"max_tokens": 1024}}).exchange.max_tokens == 1024

    def test_they_are_axes(self):
        sweep = Sweep(**PAIR, tokens=(1, 16), max_tokens=(None, 64), runtime_max_tokens=16)
        assert [p.exchange.max_tokens for p in sweep.points()] == [16, 64, 16, 64]
        assert len(set(keys(sweep))) == 4

    @pytest.mark.parametrize(
        ("counts", "words"),
        [
            ({"tokens": 9, "max_tokens": 8}, r"tokens is 9 but the capacity max_tokens is 8.*raise max_tokens"),
            ({"runtime_max_tokens": 9, "max_tokens": 8}, "runtime_max_tokens is 9 but the capacity"),
            ({"tokens": 9, "runtime_max_tokens": 8}, "runtime_max_tokens is 8 but a rank has 9 tokens"),
            (
                {"max_tokens": 8, "options": {"one_sided": {"max_tokens": 8}}},
                "max_tokens is given for the sweep",
            ),
        ],
    )
    def test_those_that_do_not_fit_are_refused(self, counts, words):
        with pytest.raises(Refused, match=words):
            one(**counts)


class TestKeys:
    def test_loads_of_the_same_fullest_rank_are_three_points(self):
        assert len(set(keys(Sweep(**PAIR, tokens=(96, (96, 0), (0, 96)))))) == 3

    def test_equal_counts_are_the_same_load(self):
        first, second = Sweep(**PAIR, tokens=(96, (96, 96))).points()
        assert (first.repeat, second.repeat) == (0, 1)
        assert first.columns | {"repeat": 1} == second.columns

    @pytest.mark.parametrize(
        "options",
        [
            {"combine_dtype": "fp32"},
            {"max_tokens": 64},
            {"low_precision_combine": True},
            {"payload_in_workspace": True},
            {"enable_rank_mask": True},
            {"without_pdl": True},
            {"eplb_stats_experts": 8},
            {"extra_payload_bytes": (4, 8)},
            {"sm_limit": 16},
            {"workspace_group": "dp"},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_every_option_makes_another_point(self, options):
        plain, other = Sweep(**PAIR, tokens=4), Sweep(**PAIR, tokens=4, options={"one_sided": options})
        assert keys(plain) != keys(other)

    @pytest.mark.parametrize(
        "change",
        [{"delay": Delay(ep_rank=1, delay_us=5)}, {"cold_l2": True}, {"seed": 1}, {"runtime_max_tokens": 9}],
        ids=lambda change: next(iter(change)),
    )
    def test_what_is_asked_of_a_round_makes_another_point(self, change):
        assert keys(Sweep(**PAIR, tokens=4)) != keys(Sweep(**PAIR, tokens=4, **change))

    def test_a_value_that_comes_twice_is_measured_twice(self):
        points = list(Sweep(**PAIR, tokens=(4, 4, 1, 4)).points())
        assert [(p.load.tokens, p.repeat) for p in points] == [(4, 0), (4, 1), (1, 0), (4, 2)]


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"layouts": None}, r"layouts is None: it must be a Layout; pass a Layout\(...\)"),
            ({"layouts": ()}, "layouts is empty"),
            ({"layouts": Layout(dp=4096)}, "a layout of 4096 ranks: .* at most 1024"),
            ({"tokens": True}, "tokens is True"),
            ({"tokens": -1}, "tokens is -1"),
            ({"tokens": 10**26}, "tokens is 1000.*at most"),
            ({"tokens": 10**5000}, "tokens is a value of type int that cannot be printed"),
            ({"tokens": 2.5}, "tokens is 2.5"),
            ({"tokens": "16"}, "tokens is '16'"),
            ({"tokens": ((1, 2, 3),)}, "tokens has 3 counts but ep_size is 2"),
            ({"tokens": {1, 2}}, "an axis has an order"),
            ({"modes": "onesided"}, "mode 'onesided' is not known: did you mean one_sided"),
            ({"modes": None}, "mode None is not known"),
            ({"routings": "zipf:nan"}, "zipf exponent is nan"),
            ({"routings": 3}, "routing 3"),
            ({"routings": HotExpert(share=0.5, expert=99)}, "hot expert is 99"),
            ({"routings": Replay(np.arange(12).reshape(3, 4))}, "replay table has top_k 4"),
            ({"formats": "fp5"}, "format 'fp5' is not known"),
            ({"clocks": "graph"}, "clock graph on device cpu"),
            ({"seed": 2**63}, "seed is 9223372036854775808: it must be at most"),
            ({"seed": -1}, "seed is -1"),
            ({"hidden": None}, "hidden is not given"),
            ({"hidden": float("nan")}, "hidden is nan"),
            ({"hidden": 10**30}, "hidden is 1000.*at most"),
            ({"top_k": 3}, "top_k is 3: the one-sided kernels"),
            ({"experts": 1}, "experts is 1 but ep_size is 2"),
            ({"fabric": "ib"}, "fabric 'ib' is not known"),
            ({"sampling": 5}, "sampling is 5: it must be a Sampling"),
            ({"delay": 5}, "delay is 5: it must be a Delay"),
            ({"delay": Delay(ep_rank=2, delay_us=1)}, r"delayed ep_rank is 2: it must lie in \[0, ep_size = 2\)"),
            ({"cold_l2": 1}, "cold_l2 is 1: it must be True or False"),
            ({"options": {"one_sided": {"hidden": 3}}}, "option of a mode 'hidden' is not known"),
            ({"options": {"one_sided": 3}}, "pass fields by mode"),
            ({"options": {"one_sided": {"payload_in_workspace": "yes"}}}, "payload_in_workspace is 'yes'"),
            ({"options": {"two_sides": {}}}, "mode 'two_sides' is not known"),
            ({"model": "deepseek-v9"}, "model 'deepseek-v9' is not known"),
            ({"token": 3}, "argument of Sweep 'token' is not known: did you mean tokens"),
            ({"Tokens": 3}, "argument of Sweep 'Tokens' is not known: write tokens"),
            ({"tokens": range(2), "seed": 0, "clocks": ["eager"] * 60_000}, "the axes make 120000 points"),
        ],
        ids=lambda value: shown(value) if isinstance(value, dict) else "",
    )
    def test_with_value_rule_and_remedy_at_construction(self, changes, words):
        with pytest.raises(Refused, match=words):
            Sweep(**{"tokens": 4} | PAIR | changes)

    @pytest.mark.parametrize(
        "fields",
        [
            {"warmup": -5},
            {"budget_s": -5},
            {"budget_s": float("nan")},
            {"budget_s": float("inf")},
            {"target": "1"},
            {"max_samples": 0},
            {"max_samples": 10**26},
            {"graph_rounds": 0},
            {"min_samples": 2.5},
        ],
        ids=str,
    )
    def test_sampling_out_of_range(self, fields):
        with pytest.raises(Refused, match=f"{next(iter(fields))} is"):
            Sampling(**fields)

    def test_values_without_names(self):
        with pytest.raises(Refused, match=r"Sweep: too many positional arguments; write Sweep\(layouts="):
            Sweep(Layout(dp=2))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.integers(),
    st.integers(10**60, 10**61),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.sampled_from(["one-sided", "Zipf:1", "hot_rank:0.5:7", "replay:1", "kimi-k2", "fp8_block", "nvlink", "graph"]),
    st.sampled_from(
        [Layout(dp=2), Layout(tp=2, pp=2), Uniform(), HotExpert(share=1.0, expert=30), Sampling(), Delay()]
    ),
    st.sampled_from([np.int64(4), np.float32(2), np.array([1, 2]), np.array(3), object(), int, len]),
)
NAMES = st.one_of(st.sampled_from(["one_sided", "two-sided", "max_tokens", "sm_limit"]), st.text())
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(
            st.one_of(st.sampled_from(["one_sided", "two-sided", "max_tokens"]), st.text()), inner, max_size=2
        ),
    ),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example({"routings": (np.array([1, 2]), None)})
@given(st.dictionaries(st.sampled_from([f.name for f in fields(Sweep)]), JUNK, max_size=3))
def test_a_sweep_of_junk_works_or_is_refused(junk):
    with suppress(Refused):
        points = list(Sweep(**PAIR | {"tokens": 4} | junk).points())
        assert points
        assert all(isinstance(point, Point) for point in points)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([f.name for f in fields(Sampling)]), JUNK, max_size=3), JUNK, JUNK)
def test_sampling_and_delay_of_junk_work_or_are_refused(junk, ep_rank, delay_us):
    with suppress(Refused):
        Sampling(**junk)
    with suppress(Refused):
        Delay(ep_rank=ep_rank, delay_us=delay_us)
    with suppress(Refused):
        Load(routing=ep_rank, tokens=delay_us)
    with suppress(Refused):
        Load(routing=Uniform(), tokens=ep_rank, seed=delay_us, runtime_max_tokens=ep_rank)
