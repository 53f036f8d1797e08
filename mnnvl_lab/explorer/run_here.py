"""Measure a setting on this machine: real rank processes, every result checked, the fabric named with each point."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.explorer.setting import Setting
from mnnvl_lab.explorer.svg import BLUE, INK, QUIET, VERMILLION, LogScale, Panel, dot, drawing, line, number, text
from mnnvl_lab.hardware import count_visible_gpus

MOST_HOST_RANKS = 16
MOST_HOST_BYTES = 2**31
"""Of all workspaces together, in the host's memory."""
SAMPLES = 12
WIDTH, LEFT, STEP, LINE = 560, 150, 26, 15
COLORS = {"one_sided": BLUE, "two_sided": VERMILLION}


def measure_here(setting: Setting, *, report: Callable[[str, int, int], None] = lambda *_: None) -> pd.DataFrame:
    """Measure each mode of a setting on this machine's own fabric.

    The workspace is sized for the capacity that is set; on `host`, where the workspaces of all ranks would then take
    too much of the machine's memory, for the tokens of the round.

    Args:
        setting: what to measure.
        report: called with what begins, the step, and the number of steps.

    Returns:
        One row per mode: `mode, fabric, ep_size, tokens, max_tokens, capacity, model, format, routing, samples, p50_us,
        low_us, high_us`; `max_tokens` is what the workspace was sized for, `capacity` what was set.

    Raises:
        Refused: more ranks or memory than this machine carries, or a limit of the kernels. WrongResult: a result
            differs from the oracle. RankError: a rank failed.
    """
    from mnnvl_lab.analysis import crossover
    from mnnvl_lab.measure import Sampling, Sweep
    from mnnvl_lab.measure.run import run
    from mnnvl_lab.ranks import Ranks

    if not setting.modes:
        raise Refused("no mode to measure: here one_sided and two_sided are measured; choose one of them")
    fabric = fabric_here(setting)
    sized_for = max_tokens_here(setting, fabric)
    steps = len(setting.modes) + 1
    report(f"starting {setting.layout.world_size} ranks on {fabric}", 0, steps)
    rows = []
    with Ranks(setting.layout, fabric=fabric) as ranks:
        for i, mode in enumerate(setting.modes, start=1):
            report(f"measuring {mode} on {fabric}", i, steps)
            sweep = Sweep(
                layouts=setting.layout,
                modes=mode,
                tokens=setting.tokens,
                max_tokens=sized_for,
                model=setting.model,
                formats=setting.format,
                routings=setting.label,
                fabric=fabric,
                sampling=Sampling(min_samples=SAMPLES, max_samples=SAMPLES, warmup=2),
            )
            medians = crossover.medians(run(sweep, ranks=ranks, progress=False), clock="eager")
            rows.append(_row(setting, mode, fabric, sized_for, medians.iloc[0]))
    report("done", steps, steps)
    return pd.DataFrame(rows)


def fabric_here(setting: Setting) -> str:
    """`nvlink` where each rank can have a GPU of this machine, else `host`.

    Raises:
        Refused: `host`, and more ranks or larger workspaces than its memory should carry.
    """
    ranks = setting.layout.world_size
    if ranks <= count_visible_gpus():
        return "nvlink"
    if ranks > MOST_HOST_RANKS:
        raise Refused(
            f"{ranks} ranks: this machine has {count_visible_gpus()} GPUs, and as CPU processes (fabric host) it runs "
            f"at most {MOST_HOST_RANKS}; lower DP, TP or PCP"
        )
    if (size := _workspaces_bytes(setting, setting.tokens)) > MOST_HOST_BYTES:
        raise Refused(
            f"{setting.tokens} tokens on {ranks} ranks take {size / 2**30:.1f} GiB of this machine's memory: at most "
            f"{MOST_HOST_BYTES / 2**30:g} GiB; use fewer tokens or ranks"
        )
    return "host"


def max_tokens_here(setting: Setting, fabric: str) -> int:
    """Tokens per rank for which a workspace is sized: the capacity, or on `host` the round's if that is too much."""
    if fabric == "host" and _workspaces_bytes(setting, setting.capacity) > MOST_HOST_BYTES:
        return setting.tokens
    return setting.capacity


def _workspaces_bytes(setting: Setting, max_tokens: int) -> int:
    return setting.layout.world_size * setting.plan.allocated_for(max_tokens)


def here_panel(table: pd.DataFrame | None) -> Panel:
    """What was measured here: medians with 95 % intervals, each with its fabric. Never in the axes of a prediction."""
    if table is None or table.empty:
        return Panel(html="", alt="nothing measured yet")
    scale = LogScale(
        low=table["low_us"].min() / 1.3, high=1.3 * table["high_us"].max(), begin=LEFT + 130, end=WIDTH - 70
    )
    title = "measured on this machine (median of eager rounds, slowest rank)"
    body = [text(0, 14, title, size=13, more='font-weight="600"')]
    for i, row in enumerate(table.to_dict("records")):
        y, color = 34 + STEP * i, COLORS.get(row["mode"], INK)
        where = f"{row['mode']}, {row['fabric']}"
        body += [
            text(0, y + 4, where),
            text(LEFT, y + 4, f"EP{row['ep_size']}, {row['tokens']} tokens", fill=QUIET, size=11),
            line(scale(row["low_us"]), y, scale(row["high_us"]), y, stroke=color, width=2),
            dot(scale(row["p50_us"]), y, fill=color, stroke=INK, more='class="measured"'),
            text(WIDTH - 62, y + 4, f"{number(row['p50_us'])} µs", size=11),
        ]
    is_host = (table["fabric"] == "host").any()
    notes = ["host: CPU processes over shared memory; not the time of NVLink" if is_host else "this machine's GPUs"]
    notes += [_size_note(row) for row in table.to_dict("records")[-1:]]
    height = 34 + STEP * len(table) + 12 + LINE
    body += [text(0, height - 4 - LINE * below, note, fill=QUIET, size=11) for below, note in enumerate(notes[::-1])]
    alt = "; ".join(f"{r['mode']} on {r['fabric']}: {r['p50_us']:.0f} µs" for r in table.to_dict("records"))
    return drawing(body, width=WIDTH, height=height, alt=f"Measured here: {alt}")


def _size_note(row: dict[str, object]) -> str:
    """For how many tokens the latest workspaces were sized."""
    if row["max_tokens"] == row["capacity"]:
        return f"workspace sized for the capacity of {row['capacity']} tokens"
    most = f"{MOST_HOST_BYTES / 2**30:g} GiB"
    return (
        f"workspace sized for {row['max_tokens']} tokens: the capacity of {row['capacity']} would take over {most} here"
    )


def _row(setting: Setting, mode: str, fabric: str, sized_for: int, medians: pd.Series) -> dict[str, object]:
    about = {"ep_size": setting.layout.ep_size, "model": setting.model, "format": setting.format}
    numbers = {name: float(medians[name]) for name in ("p50_us", "low_us", "high_us")}
    load = {
        "tokens": setting.tokens,
        "max_tokens": sized_for,
        "capacity": setting.capacity,
        "routing": setting.label,
        "samples": int(medians["n"]),
    }
    return {"mode": mode, "fabric": fabric} | about | load | numbers
