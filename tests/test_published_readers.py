"""Readers of other benchmarks' files: numbers digit for digit, with clock, convention and caveat."""

import json

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.figure import Figure

from mnnvl_lab import datasets, plots
from mnnvl_lab.errors import RecordError, Refused
from mnnvl_lab.published import READERS, read_published

# An excerpt of run 33356406487 as `Duyi-Wang/CollectiveXDashboard` keeps it: H100, DeepEP V2, EP16, one point.
COLLECTIVEX = {
    "version": 1,
    "run": {"run_id": "33356406487", "generated_at": "2026-08-31T05:22:20Z"},
    "coverage": [],
    "series": [
        {
            "series_id": "h100-dgxc-deepep-v2-deepseek-v4-pro-normal-decode-ep16-uniform-bf16",
            "phase": "decode",
            "mode": "normal",
            "precision": "bf16",
            "backend": "deepep-v2",
            "system": {"ep_size": 16, "nodes": 2, "gpus_per_node": 8, "sku": "h100-dgxc", "vendor": "nvidia"},
            "points": [
                {
                    "tokens_per_rank": 128,
                    "global_tokens": 2048,
                    "components": {
                        "dispatch": {
                            "latency_us": {"p50": 152.319997549057, "p99": 181.18399381637573},
                            "payload_data_rate_gbps_at_latency_percentile": {"p50": 62.19411864780882},
                            "payload_bytes": 151574528,
                        },
                        "stage": None,
                        "combine": {"latency_us": {"p50": 174.81599748134613}, "payload_bytes": 151574528},
                        "roundtrip": {"latency_us": {"p50": 304.064005613327}, "payload_bytes": 303149056},
                    },
                },
                {
                    "tokens_per_rank": 256,
                    "correctness": False,
                    "components": {"dispatch": {"latency_us": {"p50": 1.0}}},
                },
            ],
        }
    ],
}
# Real output of nccl-tests on four GB300, smaller sizes left out.
NCCL = """# Collective test starting: alltoall_perf
# nThread 1 nGpus 1 minBytes 524288 maxBytes 17179869184 step: 2(factor) warmup iters: 1 iters: 50 agg iters: 1 validation: 1 graph: 0
#
# Using devices
#  Rank  0 Group  0 Pid 568623 on   GPU-3882 device  0 [0008:06:00] NVIDIA GB300
#  Rank  1 Group  0 Pid 568624 on   GPU-3882 device  1 [0009:06:00] NVIDIA GB300
#  Rank  2 Group  0 Pid 568625 on   GPU-3882 device  2 [0018:06:00] NVIDIA GB300
#  Rank  3 Group  0 Pid 568628 on   GPU-3882 device  3 [0019:06:00] NVIDIA GB300
NCCL version 2.28.7+cuda13.0
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
  8589934592     536870912     float    none      -1    10308  833.31  624.98      0   9568.2  897.76  673.32    N/A
# Out of bounds values : 0 OK
"""  # noqa: E501
# As `moe_comm.py` and `flashinfer_benchmark_utils.print_perf_metrics` print; no real output was to be had.
FLASHINFER_LOG = """[INFO] args = Namespace(routine='moe_a2a_dispatch_combine', no_cuda_graph=False, num_tokens=1024, \
hidden_size=7168, num_experts=256, top_k=8, input_dtype='bfloat16', quant_dtype='nvfp4', per_phase_timing=True)
[PERF] a2a_dispatch   :: median time 0.102 ms; std 0.001 ms; achieved tflops nan TFLOPs/sec; achieved tb_per_sec 2.100 TB/sec
[PERF] a2a_combine    :: median time 0.351 ms; std 0.002 ms; achieved tflops nan TFLOPs/sec; achieved tb_per_sec 2.300 TB/sec
[PERF] a2a_total      :: median time 0.460 ms; std 0.003 ms; achieved tflops nan TFLOPs/sec; achieved tb_per_sec 2.250 TB/sec
"""  # noqa: E501
FLASHINFER_CSV = """routine,median_time,std_time,dispatch_time,dispatch_std,combine_time,combine_std,tflops,tb_per_sec,\
dispatch_tb_sec,combine_tb_sec,backend,num_tokens,hidden_size,num_experts,top_k,ep_size,input_dtype,quant_dtype,\
max_num_tokens,no_cuda_graph
moe_a2a_dispatch_combine,0.46,0.003,,,,,N/A,2.25,,,moe_a2a,1024,7168,256,8,8,torch.bfloat16,,2048,False
BatchDecode,0.1,0.0,,,,,1,1,,,fa2,,,,,,,,,False
"""
# As `bench_moe_comm.py` writes with --iter_stats and --output_file.
TRTLLM = {
    "benchmark_metadata": {"ep_size": 2, "hidden_size": 7168, "num_experts": 256, "top_k": 8, "warning": None},
    "results": [
        {
            "backend": "NVLINK_TWO_SIDED",
            "payload_in_workspace": False,
            "local_batch_size": 640,
            "dispatch_us": {
                "rank0": {"mean": 70.0, "median": 69.5, "stdev": 1.0, "min": 68.0, "max": 75.0},
                "rank1": {"mean": 71.0, "median": 70.5, "stdev": 1.0, "min": 68.0, "max": 75.0},
            },
            "combine_us": {"rank0": {"mean": 80.0, "median": 79.0}, "rank1": None},
        }
    ],
}


def one(table, **chosen):
    for name, value in chosen.items():
        table = table[table[name] == value]
    (row,) = table.to_dict("records")
    return row


@pytest.fixture
def write(tmp_path):
    def writing(content, name="file.txt"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return writing


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (COLLECTIVEX, "collectivex"),
        (NCCL, "nccl_tests"),
        (FLASHINFER_LOG, "flashinfer"),
        (FLASHINFER_CSV, "flashinfer"),
        (TRTLLM, "tensorrt_llm"),
    ],
)
def test_each_has_the_columns_and_types_of_published_figures(write, content, format):
    table = read_published(write(content), format=format)
    reference = datasets.load_published("collectivex_h100")
    assert set(table.columns) == set(reference.columns)
    assert {name: str(table[name].dtype) for name in datasets.COUNTS} == dict.fromkeys(datasets.COUNTS, "Int64")
    assert (table["source"] != "").all()
    assert (table["caveat"] != "").all()
    assert (table["clock"] != "").all()
    assert (table.loc[table["quantity"] == "bandwidth", "bandwidth_convention"] != "").all()


def test_collectivex_keeps_every_digit_and_drops_what_its_oracle_failed(write):
    table = read_published(write(COLLECTIVEX), format="collectivex")
    row = one(table, quantity="latency", phase="dispatch", percentile="p50")
    assert row["value"] == 152.319997549057
    assert (row["tokens"], row["ep_size"], row["device"], row["clock"]) == (128, 16, "h100-dgxc", "eager")
    rate = one(table, quantity="bandwidth", phase="dispatch")
    assert (rate["value"], rate["bandwidth_convention"]) == (62.19411864780882, "collectivex")
    assert one(table, phase="round")["value"] == 304.064005613327
    assert 256 not in set(table["tokens"])


def test_nccl_tests_gives_out_of_place_time_and_bus_bandwidth(write):
    table = read_published(write(NCCL), format="nccl_tests")
    time, rate = one(table, quantity="latency"), one(table, quantity="bandwidth")
    assert (time["value"], time["unit"], time["variant"]) == (10308, "us", "8589934592 B")
    assert (rate["value"], rate["bandwidth_convention"]) == (624.98, "nccl_bus")
    assert (time["devices"], time["device"], time["mode"]) == (4, "GB300", "alltoall_perf")
    assert table["tokens"].isna().all()


def test_a_flashinfer_log_names_its_load_and_clock(write):
    table = read_published(write(FLASHINFER_LOG), format="flashinfer")
    row = one(table, quantity="latency", phase="dispatch")
    assert row["value"] == pytest.approx(102)
    assert row["plus_minus"] == pytest.approx(1)
    assert (row["tokens"], row["hidden"], row["experts"], row["top_k"]) == (1024, 7168, 256, 8)
    assert (row["format"], row["clock"]) == ("nvfp4", "eager")
    assert one(table, quantity="bandwidth", phase="round")["value"] == pytest.approx(2250)


def test_a_flashinfer_csv_holds_other_routines_that_are_left_out(write):
    table = read_published(write(FLASHINFER_CSV), format="flashinfer")
    row = one(table, quantity="latency")
    assert (row["value"], row["phase"], row["clock"], row["format"]) == (pytest.approx(460), "round", "graph", "bf16")
    assert row["ep_size"] == 8


def test_tensorrt_llm_gives_the_slowest_ranks_statistic(write):
    table = read_published(write(TRTLLM), format="tensorrt_llm")
    row = one(table, phase="dispatch")
    assert (row["value"], row["percentile"], row["mode"], row["clock"]) == (70.5, "p50", "two_sided", "kernel")
    assert "prepare inside" in row["caveat"]
    assert one(table, phase="combine")["value"] == 79.0


def test_means_and_a_fallback_to_events_are_said(write):
    result = {"backend": "NVLINK_ONE_SIDED", "local_batch_size": 1, "combine_us": {}}
    result["dispatch_us"] = {"rank0": 12.5, "rank1": 13.5}
    warning = {"warning": "CUPTI kernel-span timing is unavailable."}
    plain = {"benchmark_metadata": warning, "results": [result]}
    row = one(read_published(write(plain), format="tensorrt_llm"))
    assert (row["value"], row["percentile"], row["clock"], row["ep_size"]) == (13.5, "mean", "eager", 2)


def test_they_are_drawn_in_grey_beside_ones_own(write):
    mpl.use("Agg")
    samples = datasets.load_recorded("h100x2_nvlink_ep2_bf16").query("clock == 'eager' and routing == 'uniform'")
    ax = plots.latency(samples[samples["phase"] == "dispatch"], ax=Figure().subplots())
    table = read_published(write(COLLECTIVEX), format="collectivex")
    figures = table[(table["quantity"] == "latency") & (table["phase"] == "dispatch") & (table["percentile"] == "p50")]
    plots.context(ax, figures)
    assert "deepep-v2 · h100-dgxc · 16" in {line.get_label() for line in ax.lines}


@pytest.mark.parametrize("format", [name for name in READERS if name != "aiconfigurator"])
@pytest.mark.parametrize("content", ["", "hello", "{}", "[]", '{"series": [{}]}', '{"results": []}'])
def test_a_foreign_file_is_refused_by_name(write, format, content):
    with pytest.raises(RecordError, match=r"foreign\.txt: (no|not as|holds no) .*[:;] pass "):
        read_published(write(content, "foreign.txt"), format=format)


def test_a_missing_file_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(RecordError, match=r"none\.json: cannot be read \(No such file"):
        read_published(tmp_path / "none.json", format="collectivex")
    with pytest.raises(Refused, match="nccl_tests"):
        read_published(tmp_path / "none.json", format="mlperf")


def test_figures_never_join_records(write):
    from mnnvl_lab import records

    table = read_published(write(NCCL), format="nccl_tests")
    with pytest.raises(RecordError):
        records.join([datasets.load_recorded("h100x2_nvlink_ep2_bf16"), pd.DataFrame(table)])


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"series": [1], "run": 3}',
        '{"series": [], "run": null}',
        "routine,\n1,2,3,4\n1\n1,2,3,4,5\n",
        "x,dispatch_tb_sec\n1,2\n",
        '"routine,\nroutine,"dispatch_tb_sec',
    ],
)
@pytest.mark.parametrize("format", READERS)
def test_hostile_files_are_refused_in_words_by_every_reader(tmp_path, format, content):
    path = tmp_path / "file.csv"
    path.write_text(content)
    with pytest.raises(RecordError, match=r"file\.csv: "):
        read_published(path, format=format)
