"""Clocks, warm-up, samples; a sweep as data, run on warm ranks, with every result checked."""

from mnnvl_lab.measure.point import CLOCKS, Delay, Point, Sampling
from mnnvl_lab.measure.run import measure
from mnnvl_lab.measure.sweep import Sweep

__all__ = ["CLOCKS", "Delay", "Point", "Sampling", "Sweep", "measure"]
