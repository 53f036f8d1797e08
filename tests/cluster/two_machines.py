"""Ranks on two machines that share no memory, as a script run on a third; prints what it saw as JSON."""

import json
import sys

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import MODES, Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.routing import Load, Uniform
from tests import ranks_helpers as on
from tests import transport_helpers as transports

LOADS = [Load(routing=Uniform(), tokens=tokens, seed=seed) for seed, tokens in enumerate((24, 12))]


def came_of(ranks, mode):
    """What a mode's rounds over the whole EP group gave."""
    exchange = Exchange(mode=mode, layout=ranks.layout, max_tokens=24, hidden=256, experts=16, top_k=4)
    try:
        return ranks.run(transports.rounds, exchange, LOADS)
    except Refused as error:
        return str(error)


def main():
    launcher, options = sys.argv[1], json.loads(sys.argv[2])
    layout = Layout(tp=2, dp=2, gpus_per_node=2)
    seen = {}
    with Ranks(layout, launcher=launcher, launcher_options=options, progress=False) as ranks:
        seen["grid"] = ranks.to_frame()[["rank", "node", "host", "interface"]].to_dict("list")
        seen["modes"] = {mode: came_of(ranks, mode) for mode in MODES}
        before = ranks.run(on.pid)
        ranks.kill(3)
        seen["same"] = [a == b for a, b in zip(ranks.run(on.pid), before, strict=True)]
        ranks.use(Layout(tp=2, pp=2, gpus_per_node=2))
        seen["stages"] = came_of(ranks, "one_sided")
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
