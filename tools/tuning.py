"""What the kernels leave to be set, swept one knob at a time, and how much each is worth on a device and load.

Block sizes are environment variables that a process reads once, and the SM limit of two-sided is fixed at its first
use: settings that differ in these need processes of their own. All others are measured on the same warm ranks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab import records
from mnnvl_lab.errors import LabError, RecordError, Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import Model

if TYPE_CHECKING:
    from mnnvl_lab.measure import Sampling  # brings torch and ranks, which a reader of recorded tables never needs

KIND = "knobs"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to use a mode. The defaults are FlashInfer's, except that partial sums are written in place.

    Attributes:
        mode: `one_sided` or `two_sided`.
        dispatch_block, combine_block: threads that handle a token (one-sided).
        staged: partial sums are copied into the workspace, not written there (one-sided).
        low_precision_combine, without_pdl: as in `Exchange` (one-sided).
        sm_limit: multiprocessors that the two-sided kernels may use; 0 for all.
        format: of dispatch.
    """

    mode: str
    dispatch_block: int = 256
    combine_block: int = 256
    staged: bool = False
    low_precision_combine: bool = False
    without_pdl: bool = False
    sm_limit: int = 0
    format: str = "bf16"

    def __str__(self) -> str:
        """The knobs that are turned: `combine_block 512`, or `default`."""
        turned = (f"{f.name} {getattr(self, f.name)}" for f in fields(self)[1:] if getattr(self, f.name) != f.default)
        return ", ".join(turned) or "default"

    @property
    def same_numbers(self) -> bool:
        """Whether tokens travel and add up in bf16, as they do by default."""
        return self.format == "bf16" and not self.low_precision_combine

    @property
    def of_process(self) -> tuple[int, ...]:
        """What only new processes can change."""
        return (self.dispatch_block, self.combine_block) if self.mode == "one_sided" else (self.sm_limit,)

    @property
    def environment(self) -> dict[str, str]:
        """Of the processes (FlashInfer's `envUtils.cpp`)."""
        if self.mode == "two_sided":
            return {}
        blocks = {"DISPATCH": self.dispatch_block, "COMBINE": self.combine_block}
        return {f"TLLM_MOE_A2A_{phase}_BLOCK_SIZE": str(threads) for phase, threads in blocks.items()}

    @property
    def options(self) -> dict[str, object]:
        """Fields of `Exchange`."""
        if self.mode == "two_sided":
            return {"sm_limit": self.sm_limit or None}
        return {
            "payload_in_workspace": not self.staged,
            "low_precision_combine": self.low_precision_combine,
            "without_pdl": self.without_pdl,
        }


KNOBS = tuple(f.name for f in fields(Setting))
LOAD = ("clock", "tokens", "ep_size", "hidden", "experts", "top_k", "routing")

SETTINGS = (
    *(Setting(mode="one_sided", format=name) for name in ("bf16", "fp8_block", "nvfp4")),
    Setting(mode="one_sided", staged=True),
    Setting(mode="one_sided", low_precision_combine=True),
    Setting(mode="one_sided", without_pdl=True),
    *(Setting(mode="one_sided", dispatch_block=n, combine_block=n) for n in (128, 512, 1024)),
    Setting(mode="one_sided", combine_block=1024),
    *(Setting(mode="two_sided", format=name) for name in ("bf16", "nvfp4")),
    *(Setting(mode="two_sided", sm_limit=n) for n in (64, 32)),
)
"""Blocks vary together, since a round on the graph clock is one number; 1024 in combine alone parts the two."""


def starts(settings: Sequence[Setting]) -> list[tuple[Setting, ...]]:
    """Settings that can share processes: what fixes those of one mode leaves the other mode alone."""
    by_mode = (
        [tuple(group) for _, group in groupby(_sorted(settings, mode), key=lambda s: s.of_process)]
        for mode in ("one_sided", "two_sided")
    )
    return [one + two for one, two in zip_longest(*by_mode, fillvalue=())]


def record(
    out: str | os.PathLike,
    *,
    layout: Layout,
    model: Model,
    tokens: Sequence[int],
    fabric: str,
    clock: str = "graph",
    sampling: Sampling | None = None,
    settings: Sequence[Setting] = SETTINGS,
) -> pd.DataFrame:
    """Measure every setting, and go on where an earlier call was stopped.

    Ranks that fail take the settings left in their start with them, which is said; the others are measured.

    Args:
        out: an auxiliary table of kind `knobs`, rewritten, whole, after each setting.

    Returns:
        Samples as everywhere, with the columns `KNOBS`.

    Raises:
        Refused: ranks share GPUs: there `sm_limit` belongs to the sharing. RecordError: `out` is something else.
    """
    from mnnvl_lab.measure import Sampling

    if fabric == "shared_gpu":
        raise Refused("fabric is shared_gpu: there the share of a GPU fixes sm_limit; turn the knobs on nvlink")
    table = records.load_auxiliary(out, kind=KIND) if Path(out).exists() else None
    done = set() if table is None else _settings(table)
    axes = {"layouts": (layout,), "fabric": fabric, "tokens": tuple(tokens), "clocks": (clock,)}
    for batch in starts([s for s in settings if s not in done]):
        try:
            for fresh in _measured(batch, model, axes | {"sampling": sampling or Sampling()}):
                table = _joined(table, fresh)
                records.save_auxiliary(table, out, kind=KIND)
        except LabError as error:
            print(f"{', '.join(f'{s.mode} {s}' for s in batch)}: left out: {error}", file=sys.stderr)
    if table is None:
        raise Refused("no setting could be measured: the reasons are above; try one of them with the command sweep")
    return table


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Every setting against the default of its mode at the same load.

    Args:
        table: as `record` returns it.

    Returns:
        A row per setting and load: `LOAD`, `mode, setting, p50_us, gain_percent` (of latency, positive where the
        setting is faster), `different` (whether the samples say so, see `records.is_different`: about this run, not
        about the next start of the processes), `same_numbers`.

    Raises:
        Refused: a load was not measured with the default.
    """
    rounds = table[table["phase"] == "round"]
    samples = {key: records.slowest_rank(rows)["latency_us"] for key, rows in rounds.groupby([*LOAD, *KNOBS])}
    rows = []
    for (*load, mode), of_load in groupby(sorted(samples), key=lambda key: key[: len(LOAD) + 1]):
        found = {_setting(key[len(LOAD) :]): samples[key] for key in of_load}
        default = found.get(Setting(mode=mode))
        if default is None:
            raise Refused(f"{mode} at {dict(zip(LOAD, load, strict=True))} lacks its default: a gain is over that")
        rows += [dict(zip(LOAD, load, strict=True)) | _gain(s, found[s], default) for s in found]
    return pd.DataFrame(rows)


def best(table: pd.DataFrame, *, same_numbers: bool = True) -> pd.DataFrame:
    """The fastest setting of each mode and load: a row of `gains` each.

    Args:
        same_numbers: leave out what changes the numbers: other formats, combine in fp8.
    """
    found = gains(table)
    found = found[found["same_numbers"] | (not same_numbers)]
    return found.loc[found.groupby([*LOAD, "mode"], sort=False)["p50_us"].idxmin()].reset_index(drop=True)


def _sorted(settings: Sequence[Setting], mode: str) -> list[Setting]:
    """Of one mode, those that share processes side by side, the default's first."""
    default = Setting(mode=mode).of_process
    return sorted((s for s in settings if s.mode == mode), key=lambda s: (s.of_process != default, s.of_process))


def _measured(batch: Sequence[Setting], model: Model, axes: dict[str, object]) -> Iterator[pd.DataFrame]:
    from mnnvl_lab.measure import Sweep
    from mnnvl_lab.measure.run import run
    from mnnvl_lab.ranks import Ranks

    environment = {name: value for setting in batch for name, value in setting.environment.items()}
    (layout,) = axes["layouts"]
    with Ranks(layout, fabric=axes["fabric"], env=environment) as ranks:
        for setting in batch:
            own = {"modes": (setting.mode,), "formats": (setting.format,), "options": {setting.mode: setting.options}}
            samples = run(Sweep.of_model(model, **axes, **own), ranks=ranks)
            yield samples.assign(**asdict(setting))


def _joined(table: pd.DataFrame | None, fresh: pd.DataFrame) -> pd.DataFrame:
    if table is None:
        return fresh
    before, now = (records.provenance_of(part).get("device") for part in (table, fresh))
    if before != now:
        raise RecordError(f"measured on {before} and now on {now}: device differs; name another file")
    joined = pd.concat([pd.DataFrame(part).rename_axis(None) for part in (table, fresh)], ignore_index=True)
    joined.attrs = table.attrs
    return joined


def _settings(table: pd.DataFrame) -> set[Setting]:
    return set(map(_setting, table[list(KNOBS)].drop_duplicates().itertuples(index=False)))


def _setting(values: Sequence[object]) -> Setting:
    return Setting(**dict(zip(KNOBS, values, strict=True)))


def _gain(setting: Setting, latency_us: pd.Series, default_us: pd.Series) -> dict[str, object]:
    p50_us, before_us = float(np.median(latency_us)), float(np.median(default_us))
    return {
        "mode": setting.mode,
        "setting": str(setting),
        "p50_us": p50_us,
        "gain_percent": 100 * (1 - p50_us / before_us),
        "different": records.is_different(latency_us, default_us),
        "same_numbers": setting.same_numbers,
    }
