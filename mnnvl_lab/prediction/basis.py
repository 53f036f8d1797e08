"""Where the numbers of a prediction come from, and what in them is extrapolated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mnnvl_lab.analysis.latency_model import Point
from mnnvl_lab.hardware import GPUS, Gpu
from mnnvl_lab.prediction.calibration import Calibration, FittedPart, load_calibration

STANDS_IN = {"h200": "h100"}
"""Devices with the links and multiprocessors of another one, whose fit serves where there are no own records."""


def calibration_of(gpu: Gpu) -> Calibration | None:
    """The device's own fit; of its near relative with its own memory rate; or None."""
    name = next((key for key, known in GPUS.items() if known == gpu), None)
    if name is None:
        return None
    own = load_calibration(name)
    if own is None and name in STANDS_IN:
        other = load_calibration(STANDS_IN[name])
        return other and _with_memory_of(other, name)
    return own


def basis_of(found: Calibration | None, gpu: Gpu, point: Point) -> str:
    """Where the numbers of a point come from, in one sentence."""
    short = gpu.name.split()[0]
    if found is None:
        return f"{short}: bounds only; no measurements of it are at hand"
    if point.mode not in found.parts:
        return f"{short}: bounds only; no measurements of {point.mode} on it are at hand"
    beyond = _beyond(found, point)
    return found.basis if not beyond else f"{found.basis}; {', '.join(beyond)} extrapolated"


def is_within(found: Calibration, point: Point) -> bool:
    """Whether the fit has seen such a point."""
    return not _beyond(found, point)


def _beyond(found: Calibration, point: Point) -> list[str]:
    """What of a point the fit has not seen."""
    known = found.known
    shape = {name: getattr(point, name) for name in ("hidden", "experts", "top_k")}
    said = {
        f"EP{point.ep_size}": point.ep_size in known["ep_sizes"].get(point.mode, ()),
        f"format {point.format}": point.format in known["formats"].get(point.mode, ()),
        f"routing {point.routing}": point.routing in known["routings"],
        f"{point.tokens} tokens": point.tokens <= known["most_tokens"],
        "this MoE shape": shape == known["shape"],
    }
    return [words for words, seen in said.items() if not seen]


def _with_memory_of(other: Calibration, name: str) -> Calibration:
    """Another device's fit, its memory rates scaled by what both have on paper."""
    gpu, source = GPUS[name], GPUS[other.gpu]
    ratio = gpu.hbm_gigabytes_per_s / source.hbm_gigabytes_per_s
    parts = {mode: tuple(_faster_memory(part, ratio) for part in fitted) for mode, fitted in other.parts.items()}
    short, theirs = gpu.name.split()[0], source.name.split()[0]
    basis = f"{short}: no records of it; the {theirs}'s fit with the {short}'s memory rate ({other.basis})"
    return replace(other, parts=parts, basis=basis)


def _faster_memory(fitted: FittedPart, ratio: float) -> FittedPart:
    is_memory = np.array([p.name == "memory_gigabytes_per_s" for p in fitted.part.parameters])
    return replace(fitted, optima=fitted.optima + is_memory * np.log(ratio))
