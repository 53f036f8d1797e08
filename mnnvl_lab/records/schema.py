"""Schema: name, label, unit, dtype and meaning of the columns of every table and figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pandas as pd

from mnnvl_lab.errors import Refused, choose
from mnnvl_lab.layout import Layout

SCHEMA = 2
"""Version of the record files, whose provenance is in `DataFrame.attrs["mnnvl_lab"]`.

1: point columns up to `delay_us`. 2: also each rank's tokens, runtime max, capacity, every option, repeat and EP group;
a digest protects rows and provenance.
"""


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one column of a table holds.

    Attributes:
        name: as in the table; a number's unit is part of it.
        label: words for an axis or a legend.
        meaning: one sentence for a reader who meets the column for the first time.
        dtype: pandas dtype.
        unit: as printed beside the label; empty for counts and names.
        role: `point` says which point of a sweep was measured, `sample` which sample of it, `value` what came out.
        default: fills the column of a record that lacks it, a value or a function of the table; None where every record
            must say.
    """

    name: str
    label: str
    meaning: str
    dtype: str = "int64"
    unit: str = ""
    role: str = "value"
    default: object = None

    @property
    def axis_label(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


def ep_groups(table: pd.DataFrame) -> pd.Series:
    """Number of the EP group, which is that of the pipeline stage, of each row's rank."""
    sizes = ["tp", "dp", "pcp", "pp"]
    groups = pd.Series(0, index=table.index)
    for values, rows in table[table["pp"] > 1].groupby(sizes, sort=False):
        layout = Layout(**dict(zip(sizes, values, strict=True)))
        found = rows["rank"].map(layout.to_frame().set_index("rank")["ep_group"])
        if found.isna().any():
            raise Refused(
                f"rank is {rows['rank'].max()}: it must lie in [0, {layout.world_size}), the ranks of its layout"
            )
        groups[rows.index] = found
    return groups


def _at_least_one(table: pd.DataFrame) -> pd.Series:
    return table["tokens"].clip(lower=1)


def _repeats(table: pd.DataFrame) -> pd.Series:
    """Records once kept repeated points as further iterations of the same numbers."""
    names = [c.name for c in _ALL if (c.role in ("point", "sample")) and c.name in table.columns]
    if not table.duplicated(names).any():
        return pd.Series(0, index=table.index)
    return table.groupby(names, sort=False).cumcount()


def _point(name: str, label: str, meaning: str, dtype: str = "int64", default: object = None) -> Column:
    return Column(name=name, label=label, meaning=meaning, dtype=dtype, role="point", default=default)


def _sample(name: str, label: str, meaning: str) -> Column:
    return Column(name=name, label=label, meaning=meaning, role="sample")


def _value(name: str, label: str, meaning: str, dtype: str = "float64", **more: object) -> Column:
    return Column(name=name, label=label, meaning=meaning, dtype=dtype, **more)


def _time(name: str, label: str, meaning: str, **more: object) -> Column:
    return Column(name=name, label=label, meaning=meaning, dtype="float64", unit="µs", **more)


def _bytes(name: str, label: str, meaning: str) -> Column:
    return Column(name=name, label=label, meaning=meaning, unit="B")


_ALL = (
    _point("mode", "Mode", "how tokens travel: one_sided, two_sided or a baseline", "str"),
    _point("fabric", "Fabric", "what carries the bytes: nvlink, shared_gpu or host", "str"),
    _point("device", "Device", "processor model and count; a column only where tables of several were joined", "str"),
    _point("clock", "Clock", "eager: one operation after a barrier; graph: back to back; kernel: device span", "str"),
    _point(
        "phase",
        "Phase",
        "prepare, dispatch, experts (fake: one pass over the rows), combine; round: all but experts in turn",
        "str",
    ),
    _point("tp", "TP", "tensor-parallel ranks"),
    _point("dp", "DP", "data-parallel ranks"),
    _point("pcp", "PCP", "prefill-context-parallel ranks"),
    _point("pp", "PP", "pipeline stages"),
    _point("ep_size", "Ranks of the EP group", "DP x PCP x TP ranks, which share one workspace"),
    _point("ep_group", "EP group", "number of the pipeline stage; EP groups are independent", default=ep_groups),
    _point("tokens", "Tokens per rank", "tokens that the fullest rank of the EP group dispatches in a round"),
    _point("token_counts", "Tokens of each rank", "equal, or one count per ep_rank, such as 96,0", "str", "equal"),
    _point(
        "runtime_max_tokens",
        "Runtime max",
        "tokens per rank that all ranks agree on for the round",
        default=_at_least_one,
    ),
    _point("max_tokens", "Capacity", "tokens per rank for which the workspace is sized", default=_at_least_one),
    _point("padding_rows", "Padding per rank", "rows without a token that the most padded rank adds", default=0),
    _point("padding_counts", "Padding of each rank", "equal, or one count per ep_rank, such as 0,512", "str", "equal"),
    _point("padding_id", "Padding's expert id", "-1, E or a real expert's; none without padding", "str", "none"),
    _point("invalid_ids", "Invalid ids", "what becomes of ids -1 and E: refuse, as_kernel or drop", "str", "refuse"),
    _point("replicas", "Replicas", "ranks in a row that send the same tokens, as TP ranks do", default=1),
    _point("hidden", "Hidden size", "numbers in a token's row"),
    _point("experts", "Experts", "experts of a layer, over all ranks"),
    _point("top_k", "Experts per token", "experts that a token chooses"),
    _point("format", "Dispatch format", "how a row is encoded on its way: bf16, fp8_block, mxfp8, nvfp4, ...", "str"),
    _point("routing", "Routing", "how tokens choose their experts", "str"),
    _point("seed", "Seed", "from which routing and payloads are drawn"),
    _point("payload_in_workspace", "Written in place", "experts write straight into the workspace", "bool", False),
    _point("low_precision_combine", "Combine in fp8", "partial sums travel as fp8", "bool", False),
    _point("combine_dtype", "Combine dtype", "dtype of the rows that combine adds up", "str", "bf16"),
    _point("extra_payload_bytes", "Extra payloads", "bytes per token of each, such as 4,8; empty for none", "str", ""),
    _point("enable_rank_mask", "Rank mask", "rounds may leave out dead ranks", "bool", False),
    _point("without_pdl", "Without PDL", "each kernel waits for the end of the one before", "bool", False),
    _point("eplb_stats_experts", "EPLB statistics", "experts whose load travels along; 0 for none", default=0),
    _point("sm_limit", "SM limit", "multiprocessors of the two-sided kernels; 0 for all", default=0),
    _point("workspace_group", "Workspace group", "group whose communicator allocates the workspace", "str", "ep"),
    _point("repeat", "Repeat", "number of the measurement among equal ones of a sweep", default=_repeats),
    _point("mended_prepare", "Mended prepare", "two-sided prepare that publishes no step twice", "bool", False),
    _point("l2", "L2 cache", "warm, or cold: emptied before each sample", "str", "warm"),
    _point("delayed_rank", "Delayed rank", "ep_rank that was made to arrive late", "int64", 0),
    _time("delay_us", "Delay", "how late it was made to arrive", role="point", default=0.0),
    _sample("rank", "Rank", "global rank that took the time"),
    _sample("iteration", "Iteration", "number of the sample, equal on all ranks"),
    _time("latency_us", "Latency", "time of the phase on this rank"),
    _time(
        "start_us", "Start", "when this rank entered the phase, on one time base for all ranks", default=float("nan")
    ),
    _value("checked", "Checked", "how results equalled the oracle's, before and after timing: exact or bounded", "str"),
    _value("stopped", "Stopped by", "what ended sampling: converged, budget or max_samples", "str", default="unknown"),
    _value("note", "Note", "what the transport did beyond the protocol to stay right, if anything", "str", default=""),
    _time("p50_us", "Median latency", "half of the iterations took less"),
    _time("p90_us", "90th percentile of latency", "nine in ten iterations took less"),
    _time("p99_us", "99th percentile of latency", "99 in 100 iterations took less"),
    _time("min_us", "Least latency", "the fastest iteration"),
    _time("low_us", "Lower end", "the median is above it with 97.5 % confidence"),
    _time("high_us", "Upper end", "the median is below it with 97.5 % confidence"),
    _value("spread", "Spread", "interquartile range over the median: 0.1 means that half lie within 10 %"),
    _value("n", "Iterations", "iterations that a statistic is taken over", "int64"),
    _bytes("workspace_bytes", "Workspace of a rank", "one rank's part of the workspace"),
    _bytes("prepare_bytes", "Prepare workspace of a rank", "what two_sided needs for prepare"),
    _bytes("allocated_bytes", "Memory allocated by a rank", "workspace rounded up to the granularity"),
    _bytes("mapped_bytes", "Addresses mapped by a rank", "all ranks' memory, as seen from one"),
    _bytes("reserved_bytes", "Addresses reserved by a rank", "address range that a rank sets aside"),
    _value("region", "Region", "named part of a workspace", "str"),
    _bytes("offset_bytes", "Offset in the workspace", "where a region begins"),
    _bytes("size_bytes", "Size", "length of a region"),
    _value("source", "Source rank", "ep_rank that sends", "int64"),
    _value("target", "Target rank", "ep_rank that receives", "int64"),
    _value("part", "Part of a batch", "prefill, decode, dummy or padding", "str"),
    _value("placement", "Placement", "which experts lie on which rank: linear, round_robin, balanced, ...", "str"),
    _value("copies", "Copies", "choices of experts: what the experts have to compute", "int64"),
    _value("rows", "Rows", "token rows from source to target; a token goes to a rank once", "int64"),
    _bytes("moved_bytes", "Bytes", "bytes from source to target"),
)

COLUMNS: Mapping[str, Column] = MappingProxyType({column.name: column for column in _ALL})

POINT_COLUMNS = tuple(c.name for c in _ALL if c.role == "point" and c.name != "device")
"""What tells one measured point, and phase of it, from another."""

DEFAULTS: Mapping[str, object] = MappingProxyType({c.name: c.default for c in _ALL if c.default is not None})

SAMPLE_COLUMNS = (*POINT_COLUMNS, "rank", "iteration", "latency_us", "start_us", "checked", "stopped", "note")
"""Columns of every record file; those in `DEFAULTS` need not be given."""

SIZES = ("max_tokens", "runtime_max_tokens")
"""Point columns that follow from `tokens` unless a sweep says otherwise."""
OPTIONS = (
    "payload_in_workspace",
    "low_precision_combine",
    "enable_rank_mask",
    "without_pdl",
    "eplb_stats_experts",
    "sm_limit",
    "mended_prepare",
)
"""Point columns that say how a mode is used, not what it carries."""

LOAD_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "ep_size": "EP {}",
        "hidden": "hidden {}",
        "experts": "{} experts",
        "top_k": "top-{}",
        "format": "{}",
        "routing": "{} routing",
        "tokens": "{} tokens per rank",
    }
)
"""How a value of these columns is named."""


def require_column(name: str) -> Column:
    """The column of that name.

    Raises:
        Refused: no such column; near names are given.
    """
    return COLUMNS[choose(name, COLUMNS, "column")]
