"""Clocks, warm-up, samples; a sweep as data, run on warm ranks, with every result checked."""

from mnnvl_lab.measure.point import CLOCKS, Delay, Point, Sampling, Sweep
from mnnvl_lab.measure.run import measure

__all__ = ["CLOCKS", "Delay", "Point", "Sampling", "Sweep", "measure"]
