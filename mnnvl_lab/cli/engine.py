"""`--engine ENGINE -- FLAGS`: an engine's own command line instead of a layout."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mnnvl_lab.errors import Refused

if TYPE_CHECKING:
    from mnnvl_lab.engines import EngineSetup

ENGINES = "vllm, sglang, tensorrt_llm"
SIZES = ("tp", "dp", "pcp", "pp")


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", metavar="ENGINE", help=f"read the flags after -- as those of {ENGINES}")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="the engine's own flags")


def take_engine(args: argparse.Namespace) -> EngineSetup | None:
    """What the engine's flags make, with layout and model put into `args`; None without `--engine`.

    Raises:
        Refused: flags without an engine, a layout beside one, or a flag that the engine's rules refuse.
    """
    from mnnvl_lab.engines import read_engine
    from mnnvl_lab.serving import model_named

    if args.engine is None:
        if args.flags:
            raise Refused(f"{args.flags[0]!r} is given without --engine: name one of {ENGINES}, or leave it out")
        return None
    given = [name for name in SIZES if getattr(args, name) != 1]
    if given:
        raise Refused(
            f"--engine and --{given[0]} given: the engine's flags make the layout; leave one or the other out"
        )
    setup = read_engine(args.engine, args.flags)
    for name in (*SIZES, "gpus_per_node"):
        setattr(args, name, getattr(setup.layout, name))
    if args.model is None and all(value is None for value in (args.hidden, args.experts, args.top_k)):
        found = model_named(setup.model)
        if found is None:
            named = f"model {setup.model!r} is not known here" if setup.model else "the flags name no model"
            raise Refused(f"{named}: a plan needs its MoE shape; pass --model, or --hidden, --experts and --top-k")
        args.model = found.name
    return setup
