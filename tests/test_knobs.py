import numpy as np
import pandas as pd
import pytest

from mnnvl_lab import records
from mnnvl_lab.errors import RecordError, Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Sampling
from mnnvl_lab.model import Model
from tools import tuning
from tools.tuning import SETTINGS, Setting

TINY = Model(
    name="tiny", hidden=256, experts=8, top_k=2, moe_layers=1, kv_bytes_per_token=1, source="made up for this test"
)
QUICK = Sampling(warmup=0, min_samples=6, max_samples=6, budget_s=0.01)


def samples(setting: Setting, latency_us: float, *, tokens: int = 16, seed: int = 0) -> pd.DataFrame:
    """Twenty iterations of two ranks, of which rank 1 is the slower by 1 us."""
    noise = np.random.default_rng(seed).normal(0, 0.1, 20)
    load = {"clock": "graph", "phase": "round", "tokens": tokens, "ep_size": 2} | {
        "hidden": 256,
        "experts": 8,
        "top_k": 2,
        "routing": "uniform",
    }
    own = {name: getattr(setting, name) for name in tuning.KNOBS}
    rows = [
        load | own | {"iteration": i, "rank": rank, "latency_us": latency_us + noise[i] - (1 - rank)}
        for i in range(20)
        for rank in range(2)
    ]
    return pd.DataFrame(rows)


def test_settings_that_fix_a_process_never_share_one():
    for batch in tuning.starts(SETTINGS):
        for mode in ("one_sided", "two_sided"):
            assert len({s.of_process for s in batch if s.mode == mode}) <= 1
    assert sorted(map(str, SETTINGS)) == sorted(str(s) for batch in tuning.starts(SETTINGS) for s in batch)
    assert len(tuning.starts(SETTINGS)) <= 5
    assert {Setting(mode="one_sided"), Setting(mode="two_sided")} <= set(tuning.starts(SETTINGS)[0])


def test_block_sizes_reach_the_processes_by_the_names_that_the_kernels_read():
    """The names stand in FlashInfer's envUtils.cpp."""
    assert Setting(mode="one_sided", dispatch_block=512).environment == {
        "TLLM_MOE_A2A_DISPATCH_BLOCK_SIZE": "512",
        "TLLM_MOE_A2A_COMBINE_BLOCK_SIZE": "256",
    }


def test_gains_are_over_the_default_of_the_mode_and_load():
    one, wide = Setting(mode="one_sided"), Setting(mode="one_sided", combine_block=512)
    two = Setting(mode="two_sided")
    table = pd.concat(
        [samples(one, 100), samples(wide, 80, seed=1), samples(two, 200), samples(one, 50, tokens=1)],
        ignore_index=True,
    )
    found = tuning.gains(table).set_index(["mode", "tokens", "setting"])
    assert found.loc[("one_sided", 16, "combine_block 512"), "gain_percent"] == pytest.approx(20, abs=0.3)
    assert found.loc[("one_sided", 16, "combine_block 512"), "different"]
    assert found.loc[("two_sided", 16, "default"), "gain_percent"] == 0
    assert not found.loc[("two_sided", 16, "default"), "different"]
    assert found.loc[("one_sided", 1, "default"), "p50_us"] == pytest.approx(50, abs=0.2)  # the slower rank's


def test_best_leaves_out_what_changes_the_numbers():
    settings = {
        Setting(mode="one_sided"): 100,
        Setting(mode="one_sided", format="nvfp4"): 50,
        Setting(mode="one_sided", low_precision_combine=True): 70,
        Setting(mode="one_sided", without_pdl=True): 103,
    }
    table = pd.concat([samples(s, us) for s, us in settings.items()], ignore_index=True)
    assert tuning.best(table)["setting"].tolist() == ["default"]
    assert tuning.best(table, same_numbers=False)["setting"].tolist() == ["format nvfp4"]


def test_without_a_default_there_is_no_gain():
    with pytest.raises(Refused, match="lacks its default"):
        tuning.gains(samples(Setting(mode="one_sided", staged=True), 100))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("knobs") / "knobs.parquet"
    settings = [
        Setting(mode="one_sided"),
        Setting(mode="one_sided", staged=True),
        Setting(mode="one_sided", low_precision_combine=True),
        Setting(mode="two_sided"),
    ]
    how = {"layout": Layout(dp=2), "model": TINY, "tokens": (4,), "fabric": "host", "clock": "eager"}
    return path, settings, how | {"sampling": QUICK}


def test_settings_are_measured_and_not_again(recorded):
    path, settings, how = recorded
    first = tuning.record(path, settings=settings[:3], **how)
    again = tuning.record(path, settings=settings, **how)
    assert len(again) > len(first)
    assert again.iloc[: len(first)]["latency_us"].tolist() == first["latency_us"].tolist()
    assert again.groupby("staged")["payload_in_workspace"].unique().loc[True].tolist() == [False]
    assert set(tuning.gains(records.load_auxiliary(path, kind="knobs"))["setting"]) == {
        "default",
        "staged True",
        "low_precision_combine True",
    }


def test_knobs_of_shared_gpus_are_refused(recorded, tmp_path):
    with pytest.raises(Refused, match=r"fabric is shared_gpu: .*turn the knobs on nvlink"):
        tuning.record(tmp_path / "x", **recorded[2] | {"fabric": "shared_gpu"})


def test_another_device_is_refused():
    here, there = samples(Setting(mode="one_sided"), 1), samples(Setting(mode="one_sided"), 1)
    here.attrs, there.attrs = ({"mnnvl_lab": {"device": name}} for name in ("a", "b"))
    with pytest.raises(RecordError, match="device differs"):
        tuning._joined(here, there)
