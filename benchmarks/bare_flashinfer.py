"""FlashInfer's own classes in a bare loop, to hold against the lab's graph medians: the harness must add nothing.

    python -m benchmarks.bare_flashinfer --tokens 128 512 4096 --out data/bare_flashinfer.json

What is timed uses nothing of this package: processes by torch.multiprocessing, `MoeAlltoAll` and `MnnvlMoe` as they
come, one CUDA graph of ten rounds. Prints, for each mode and token count, the median over replays of the slowest rank;
`--out` keeps them with their provenance, which `mnnvl_lab.records` reads after the processes have ended.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

HIDDEN, EXPERTS, TOP_K = 7168, 256, 8
ROUNDS, REPLAYS = 10, 15


def one_sided(rank: int, ranks: int, tokens: int, ids: torch.Tensor, rows: torch.Tensor):
    """A round of `MoeAlltoAll` with the experts' results left in the workspace."""
    from flashinfer.comm.mapping import Mapping
    from flashinfer.comm.mnnvl import MnnvlConfig, TorchDistBackend
    from flashinfer.comm.trtllm_moe_alltoall import MoeAlltoAll

    mapping = Mapping(world_size=ranks, rank=rank, gpus_per_node=ranks, tp_size=ranks, moe_ep_size=ranks)
    config = MnnvlConfig(comm_backend=TorchDistBackend())
    alltoall = MoeAlltoAll(
        mapping, max_num_tokens=tokens, top_k=TOP_K, num_experts=EXPERTS, hidden_size=HIDDEN, mnnvl_config=config
    )
    weights = torch.rand(tokens, TOP_K, device="cuda")

    def run():
        alltoall.dispatch(ids, [rows, ids, weights], tokens)
        partials = alltoall.get_combine_payload_tensor_in_workspace(tokens, HIDDEN, torch.bfloat16)
        alltoall.combine(partials, tokens, payload_in_workspace=True)

    return run


def two_sided(rank: int, ranks: int, tokens: int, ids: torch.Tensor, rows: torch.Tensor, *, freed: bool = False):
    """A round of `MnnvlMoe`: prepare, move, combine; received rows are held until it ends, as experts need them.

    With `freed` their memory goes back before combine, which then may take it for its own rows.
    """
    from flashinfer.comm.mapping import Mapping
    from flashinfer.comm.mnnvl import MnnvlConfig, MnnvlMemory, TorchDistBackend
    from flashinfer.comm.trtllm_alltoall import MnnvlMoe

    MnnvlMemory.initialize()
    mapping = Mapping(world_size=ranks, rank=rank, gpus_per_node=ranks, tp_size=ranks)
    config = MnnvlConfig(comm_backend=TorchDistBackend())
    fifos = MnnvlMoe.get_moe_workspaces(mapping, config)
    prepare = MnnvlMoe.get_moe_prepare_workspace(mapping, config)
    weights = torch.rand(tokens, TOP_K, device="cuda")
    partials = torch.zeros(ranks * tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)  # where experts would write

    def run():
        info, _, _, _ = MnnvlMoe.mnnvl_moe_alltoallv_prepare_without_allgather(
            ids, weights, None, prepare, tokens, rank, ranks, EXPERTS, EXPERTS, TOP_K
        )
        received = MnnvlMoe.mnnvl_moe_alltoallv(rows, info, fifos, rank, ranks)
        if freed:
            del received
        MnnvlMoe.mnnvl_moe_alltoallv_combine(partials, info, fifos, rank, ranks, TOP_K, tokens)

    return run


MODES = {
    "one_sided": one_sided,
    "two_sided": two_sided,
    "two_sided_rows_freed": partial(two_sided, freed=True),
}


def median_us(run) -> float:
    """Median over replays of the slowest rank's time for a round."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        for _ in range(ROUNDS):
            run()
    return float(torch.stack([_replay_us(graph) for _ in range(REPLAYS)]).median())


def _replay_us(graph) -> torch.Tensor:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    dist.barrier()
    graph.replay()
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    slowest = torch.tensor(begin.elapsed_time(end) * 1e3 / ROUNDS)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return slowest


def work(rank: int, ranks: int, tokens_list: Sequence[int], port: int, out: Path) -> None:
    """One rank; rank 0 prints each median and leaves all of them in `out` as JSON."""
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.cuda.set_device(rank)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    torch.manual_seed(rank)
    medians = []
    for name, make in MODES.items():
        for tokens in tokens_list:
            scores = torch.rand(tokens, EXPERTS, device="cuda")
            ids = scores.topk(TOP_K, dim=1).indices.to(torch.int32)
            rows = torch.randn(tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
            found_us = median_us(make(rank, ranks, tokens, ids, rows))
            medians.append({"mode": name, "tokens": tokens, "latency_us": round(found_us, 1)})
            if rank == 0:
                print(f"{name:20} {tokens:6} tokens per rank {found_us:9.1f} us", flush=True)
    if rank == 0:
        out.write_text(json.dumps(medians))
    dist.barrier()
    dist.destroy_process_group()


def document(
    medians: Sequence[Mapping[str, object]], *, ranks: int, provenance: Mapping[str, object]
) -> dict[str, object]:
    """What `--out` holds: what was measured, where, and the medians.

    Args:
        medians: `mode, tokens, latency_us` each.
        provenance: as `records.provenance` gives it for fabric `nvlink`.
    """
    fields = ("command", "created_at", "commit", "dirty", "device", "driver", "topology", "torch", "flashinfer")
    return {
        "kind": "bare_flashinfer",
        "what": f"median over {REPLAYS} replays of the slowest rank, a graph of {ROUNDS} rounds divided by {ROUNDS}, "
        f"in us; EP {ranks}, hidden {HIDDEN}, {EXPERTS} experts, top-{TOP_K}, bf16",
        **{field: provenance[field] for field in fields},
        "medians": [dict(median) for median in medians],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare_flashinfer", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 128, 512, 2048, 4096])
    parser.add_argument("--port", type=int, default=29571)
    parser.add_argument("--out", type=Path, help="file for the medians and their provenance, as JSON")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        kept = Path(folder) / "medians.json"
        inputs = (options.ranks, options.tokens, options.port, kept)
        torch.multiprocessing.spawn(work, args=inputs, nprocs=options.ranks)
        medians = json.loads(kept.read_text())
    if options.out:
        write(options.out, document(medians, ranks=options.ranks, provenance=_provenance()))
        print(f"wrote {options.out}")


def write(path: Path, content: Mapping[str, object]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, path)


def _provenance() -> dict[str, object]:
    from mnnvl_lab import records

    return records.provenance(fabric="nvlink", clocks=("graph",))


if __name__ == "__main__":
    main()
