"""A sweep in a process of its own, to be killed: `python -m tests.sweep_for_survival FILE`."""

import sys

from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Sampling, Sweep
from mnnvl_lab.measure.run import run

SWEEP = Sweep(
    layouts=(Layout(dp=2),),
    tokens=tuple(range(1, 9)),
    hidden=64,
    experts=8,
    top_k=2,
    sampling=Sampling(warmup=1, min_samples=5, max_samples=5),
)
POINTS = 2 * 8

if __name__ == "__main__":
    run(SWEEP, out=sys.argv[1], resume=True, progress=False)
