"""FlashInfer's own classes in a bare loop, to hold against the lab's graph medians: the harness must add nothing.

    python -m benchmarks.bare_flashinfer --ranks 2 --tokens 128 512 4096

Uses nothing of this package: processes by torch.multiprocessing, `MoeAlltoAll` and `MnnvlMoe` as they come, one CUDA
graph of ten rounds. Prints, for each mode and token count, the median over replays of the slowest rank.
"""

from __future__ import annotations

import argparse
import warnings

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


def two_sided(rank: int, ranks: int, tokens: int, ids: torch.Tensor, rows: torch.Tensor):
    """A round of `MnnvlMoe`: prepare, move, combine."""
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
        MnnvlMoe.mnnvl_moe_alltoallv(rows, info, fifos, rank, ranks)
        MnnvlMoe.mnnvl_moe_alltoallv_combine(partials, info, fifos, rank, ranks, TOP_K, tokens)

    return run


MODES = {"one_sided": one_sided, "two_sided": two_sided}


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


def work(rank: int, ranks: int, tokens_list: list[int], port: int) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.cuda.set_device(rank)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    torch.manual_seed(rank)
    for name, make in MODES.items():
        for tokens in tokens_list:
            scores = torch.rand(tokens, EXPERTS, device="cuda")
            ids = scores.topk(TOP_K, dim=1).indices.to(torch.int32)
            rows = torch.randn(tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
            found_us = median_us(make(rank, ranks, tokens, ids, rows))
            if rank == 0:
                print(f"{name:10} {tokens:6} tokens a rank {found_us:9.1f} us", flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 128, 512, 2048, 4096])
    parser.add_argument("--port", type=int, default=29571)
    options = parser.parse_args()
    arguments = (options.ranks, options.tokens, options.port)
    torch.multiprocessing.spawn(work, args=arguments, nprocs=options.ranks)


if __name__ == "__main__":
    main()
