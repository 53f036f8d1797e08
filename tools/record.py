"""Record the data that `data/README.md` describes, on a machine with GPUs.

    python -m tools.record sweeps --fabric nvlink --ranks 2 --parts bf16 fp8 kernel --out data/h100x2_nvlink_ep2
    python -m tools.record conformance --fabric nvlink --ranks 2 --out data/conformance
    python -m tools.record wrong_group --fabric shared_gpu --ranks 4 --out data/wrong_group_4.json

Every command stands alone and can be repeated; sweeps go on where they were stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from types import MappingProxyType

import pandas as pd
from tqdm.auto import tqdm

from mnnvl_lab import records, wrong_group
from mnnvl_lab.cli.arguments import Parser, whole_in
from mnnvl_lab.errors import MOST_COUNT
from mnnvl_lab.exchange import MODES
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Delay, Sampling, Sweep, links, memory, memory_overhead
from mnnvl_lab.measure.run import run
from mnnvl_lab.model import require_model
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.routing import HotRank, Uniform, Zipf
from mnnvl_lab.transport.flashinfer.upstream import LAYERS, VLLM_LAYERS
from mnnvl_lab.transport.flashinfer.vllm_files import find_vllm
from tools import conformance, tuning
from tools.arguments import MOST_RANKS, add_fabric, file_path, run_tool, tool_parser

MOST_TOKENS = 4096
SAMPLING = Sampling(warmup=3, min_samples=15, max_samples=60, budget_s=0.1)
MULTIPROCESSORS = 132


def base_sweep(options: argparse.Namespace) -> Sweep:
    """DeepSeek-V3's shape on the machine's EP group, in every mode that the fabric carries; bf16, uniform."""
    per_gpu = 1 if options.fabric == "nvlink" else -(-options.ranks // options.gpus)
    return Sweep.of_model(
        require_model("deepseek-v3"),
        layouts=(Layout(dp=options.ranks),),
        fabric=options.fabric,
        tokens=tokens_to(MOST_TOKENS),
        sampling=SAMPLING,
        modes=MODES[:2] if options.fabric == "shared_gpu" else MODES,
        clocks=("graph", "eager"),
        options={
            "one_sided": {"payload_in_workspace": True},
            "two_sided": {"sm_limit": MULTIPROCESSORS // per_gpu if per_gpu > 1 else None},
        },
    )


def tokens_to(most: int) -> tuple[int, ...]:
    """Powers of two from 1 to `most`."""
    return tuple(2**n for n in range(most.bit_length()))


PARTS = MappingProxyType(
    {
        "bf16": {"routings": (Uniform(), Zipf(exponent=1.2))},
        "uniform": {},
        "fp8": {"formats": ("fp8_block",)},
        "hot": {"routings": (HotRank(share=0.5, rank=0),)},
        "kernel": {"clocks": ("kernel",), "modes": MODES[:2]},
        "beside_bare": {"clocks": ("graph",), "modes": MODES[:2], "tokens": (128, 512, 4096)},
        "again": {"clocks": ("graph",), "modes": MODES[:2], "tokens": (512, 1024, 2048, 4096)},
    }
)
"""What is recorded of an EP size, a file each: fields of its sweep that differ from `base_sweep`."""


def record_sweeps(options: argparse.Namespace) -> None:
    """Latency: the parts of PARTS, a file each."""
    with Ranks(Layout(dp=options.ranks), fabric=options.fabric) as ranks:
        for part in options.parts:
            sweep = replace(base_sweep(options), **{"tokens": tokens_to(options.most_tokens)} | PARTS[part])
            out = options.out.with_name(f"{options.out.name}_{part}.parquet")
            table = run(sweep, ranks=ranks, out=out, resume=True)
            shown = records.summary(table, by=["mode", "format", "routing", "clock", "tokens", "phase"])
            print(shown.to_string())


def record_conformance(options: argparse.Namespace) -> None:
    """Small rounds as bytes, which every other fabric must reproduce."""
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = tuple(range(2, options.ranks + 1, 2)) if options.fabric == "host" else (options.ranks,)
    origin = records.provenance(fabric=options.fabric)
    with Ranks(Layout(dp=options.ranks), fabric=options.fabric) as ranks:
        for case in tqdm(list(conformance.cases(sizes)), desc="cases"):
            ranks.use(case.layout)
            conformance.save(options.out, case, ranks.run(conformance.replay, case), origin)


def record_wrong_group(options: argparse.Namespace) -> None:
    """The workspace over the DP group and over the EP group: with TP 2 these are two groups, with TP 1 one."""
    model, on_gpu = require_model("deepseek-v3"), options.fabric != "host"
    shape = {"hidden": model.hidden, "experts": model.experts, "top_k": model.top_k}
    layers = (*LAYERS, *(VLLM_LAYERS if find_vllm() else ()))
    how = {"layers": layers if on_gpu else (), "clock": "graph" if on_gpu else "eager"}
    layouts, tables = (Layout(tp=2, dp=options.ranks // 2), Layout(dp=options.ranks)), []
    with Ranks(layouts[0], fabric=options.fabric) as ranks:
        for layout in layouts:
            tables.append(wrong_group.side_by_side(ranks, layout, **shape, **how))
            wrong_group.save(wrong_group.join(tables), options.out)
    print(wrong_group.join(tables).drop(columns="latencies_us").to_string())


def record_links(options: argparse.Namespace) -> None:
    """What the links and the memory of this machine reach, and the floors of launch and flags."""
    with Ranks(Layout(dp=options.ranks), fabric=options.fabric) as ranks:
        table = links.measure_links(ranks, provenance=records.provenance(fabric=options.fabric))
    records.save_auxiliary(table, options.out, kind="links")
    print(links.limits(table).to_string())


def record_memory(options: argparse.Namespace) -> None:
    """Memory around every step of a transport's life, beside what was predicted, for both modes and two formats."""
    sweep = replace(
        base_sweep(options),
        modes=MODES[:2],
        formats=("bf16", "fp8_block"),
        routings=(Uniform(),),
        tokens=(1, 16, 256, 1024, 4096),
        clocks=("graph",),
    )
    origin = records.provenance(fabric=options.fabric)
    with Ranks(sweep.layouts[0], fabric=options.fabric) as ranks:
        tables = [memory.measure_ledger(point, ranks) for point in tqdm(list(sweep.points()), desc="ledgers")]
    table = pd.concat(tables, ignore_index=True)
    table.attrs = {"mnnvl_lab": origin}
    records.save_auxiliary(table, options.out, kind="memory")
    predicted = table[table["step"].isin(["open", "close"])]
    print(predicted[["mode", "format", "tokens", "rank", "step", "change_bytes", "predicted_bytes", "rest_bytes"]])


def record_growth(options: argparse.Namespace) -> None:
    """Workspaces that grow: FlashInfer's class keeps the old ones, this package's transport gives them back."""
    exchange = next(base_sweep(options).points()).exchange
    with Ranks(exchange.layout, fabric=options.fabric) as ranks:
        grown = ranks.run(memory_overhead.grow, exchange, (256, 1024, 4096), timeout_s=120)
    table = pd.DataFrame([{"rank": rank, "fabric": options.fabric} | asdict(one) for rank, one in enumerate(grown)])
    table.attrs = {"mnnvl_lab": records.provenance(fabric=options.fabric)}
    records.save_auxiliary(table, options.out, kind="growth")
    print(table.to_string())


def record_stragglers(options: argparse.Namespace) -> None:
    """One rank enters late by known delays; rows go evenly, or mostly to one rank."""
    base = replace(
        base_sweep(options),
        modes=MODES[:2],
        tokens=(128, 1024),
        clocks=("eager",),
        routings=(Uniform(), HotRank(share=0.9, rank=0)),
        sampling=Sampling(warmup=3, min_samples=30, max_samples=60, budget_s=0.2),
    )
    with Ranks(base.layouts[0], fabric=options.fabric) as ranks:
        for delay_us in (0.0, 100.0, 300.0, 1000.0, 3000.0):
            delay = Delay(ep_rank=1, delay_us=delay_us)
            run(replace(base, delay=delay), ranks=ranks, out=options.out, resume=True)


def record_knobs(options: argparse.Namespace) -> None:
    """What block sizes, PDL, SM limit, formats and the ways of combine are worth, against the default of each mode."""
    table = tuning.record(
        options.out,
        layout=Layout(dp=options.ranks),
        model=require_model("deepseek-v3"),
        tokens=(16, 128, 1024, 4096),
        fabric=options.fabric,
        clock="eager" if options.fabric == "host" else "graph",
        sampling=SAMPLING,
    )
    print(tuning.gains(table).to_string())
    print(tuning.best(table).to_string())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = tool_parser("tools.record", __doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    recorders = (
        record_sweeps,
        record_conformance,
        record_wrong_group,
        record_links,
        record_memory,
        record_growth,
        record_stragglers,
        record_knobs,
    )
    for name, function in ((function.__name__.removeprefix("record_"), function) for function in recorders):
        command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        command.set_defaults(function=function)
        add_fabric(command, required=True)
        command.add_argument(
            "--gpus",
            type=whole_in(1, MOST_RANKS),
            default=2,
            metavar="N",
            help="that shared_gpu ranks share (default 2)",
        )
        command.add_argument(
            "--out", type=file_path, required=True, metavar="PATH", help="file, folder or name's start"
        )
        if function is record_sweeps:
            command.add_argument(
                "--parts", nargs="+", default=["bf16"], choices=tuple(PARTS), help="what is recorded (default bf16)"
            )
            command.add_argument(
                "--most-tokens",
                type=whole_in(1, MOST_COUNT),
                default=MOST_TOKENS,
                metavar="T",
                help="per rank, powers of two up to it (default %(default)s)",
            )
    options = parser.parse_args(arguments)
    options.function(options)
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
