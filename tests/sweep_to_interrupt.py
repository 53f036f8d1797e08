"""A script that is interrupted from outside: it says on stdout when ranks are up and after each point of a sweep."""

import sys

from mnnvl_lab.errors import Interrupted
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Sampling, Sweep, measure
from mnnvl_lab.measure import run as module
from mnnvl_lab.ranks import Ranks

LAYOUT = Layout(tp=2)
SWEEP = Sweep(
    layouts=(LAYOUT,),
    tokens=tuple(range(1, 401)),
    modes=("one_sided",),
    hidden=64,
    experts=8,
    top_k=2,
    sampling=Sampling(warmup=0, min_samples=1, max_samples=1, budget_s=0.0),
)


def say(*words: object) -> None:
    print(*words, flush=True)


def run(**more):
    """The sweep, a word on stdout after each point."""
    numbers = iter(range(1, 401))
    module.measure = lambda point, ranks: (measure(point, ranks), say("point", next(numbers)))[0]
    return module.run(SWEEP, **more)


if __name__ == "__main__":
    if sys.argv[1] == "uncaught":
        run(progress=False)
    with Ranks(LAYOUT) as ranks:
        say("ready")
        try:
            run(ranks=ranks, **({"out": sys.argv[2]} if len(sys.argv) > 2 else {}))
        except Interrupted as error:
            say("interrupted:", error)
            say("points kept:", error.table["tokens"].nunique())
            say("works again:", measure(next(SWEEP.points()), ranks)["tokens"].nunique())
