"""FlashInfer's one-sided MoE all-to-all gives wrong sums when rounds grow: a reproducer by its Python API alone.

    python changing_size.py                     two GPUs with NVLink, two processes, under a minute
    python changing_size.py --cures all         what makes it right, and what that costs

In 0.7.2 the combine region begins behind the dispatch regions, whose length follows `runtime_max_tokens_per_rank`, and
no barrier ends a combine. A rank that has pulled its last row goes on to the next dispatch; if that round has a larger
maximum, its rows land where a slower rank still pulls partial sums. Exit status: 0 nothing wrong, 1 the fault was
found, 2 it could not run.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import queue
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

FOUND, CLEAN, UNABLE = 1, 0, 2
EXPERTS, HIDDEN, TOP_K = 256, 7168, 8
PAIRS_PER_GRAPH = 5
TIMED_REPLAYS = 15
CURES = ("none", "barrier", "empty_dispatch", "constant_max", "fixed_offset")
"""`barrier`: all ranks wait for their stream and meet on the host. `empty_dispatch`: a dispatch without tokens at the
old size, whose flags are a barrier on the device. `constant_max`: every round passes the capacity as its maximum.
`fixed_offset`: combine's region begins where the capacity's would, through the offset that the functional API takes."""


# ---------------------------------------------------------------------------------------------- a rank


def rank_main(rank: int, options: dict, answers) -> None:
    try:
        answers.put((rank, run_cases(rank, options), None))
    except BaseException as error:
        answers.put((rank, None, f"{type(error).__name__}: {error}"))
    time.sleep(0.3)
    os._exit(0)  # a peer may still map this memory


def run_cases(rank: int, options: dict) -> list[dict]:
    import torch
    import torch.distributed as dist

    size = options["ranks"]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options["port"]), LOCAL_RANK=str(rank))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    torch.cuda.set_device(rank * options["gpus"] // size)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    exchange = Exchange(rank, size, options)
    return [exchange.case(**case) for case in options["cases"]]


class Exchange:
    """One rank's side, by the functional API on the workspace of `MoeAlltoAll`."""

    def __init__(self, rank: int, size: int, options: dict):
        import torch
        from flashinfer.comm import Mapping, trtllm_moe_alltoall
        from flashinfer.comm.comm_backend import TorchDistBackend
        from flashinfer.comm.mnnvl import MnnvlConfig

        class Backend(TorchDistBackend):
            def Split(self, color, key):
                return self

        self.rank, self.size, self.api, self.replays = rank, size, trtllm_moe_alltoall, options["replays"]
        self.capacity = capacity = options["capacity"]
        mapping = Mapping(world_size=size, rank=rank, gpus_per_node=size, tp_size=size, moe_ep_size=size)
        shape = {"max_num_tokens": capacity, "top_k": TOP_K, "num_experts": EXPERTS, "hidden_size": HIDDEN}
        owner = trtllm_moe_alltoall.MoeAlltoAll(mapping, **shape, mnnvl_config=MnnvlConfig(comm_backend=Backend(None)))
        self.workspace, self.metainfo = owner.workspace, owner.metainfo
        generator = torch.Generator(device="cuda").manual_seed(7 + rank)
        keys = torch.rand(capacity, EXPERTS, device="cuda", generator=generator)
        self.ids = keys.topk(TOP_K, -1).indices.int().contiguous()
        self.weights = torch.rand(capacity, TOP_K, device="cuda", generator=generator)
        targets = (self.ids // (EXPERTS // size)).long()
        hit = torch.zeros(capacity, size, device="cuda").scatter_(1, targets, 1.0)
        self.target_count = hit.sum(1, keepdim=True).bfloat16()
        rows = ((torch.arange(capacity, device="cuda") % 16) + 1).bfloat16()[:, None].expand(-1, HIDDEN)
        self.rows = {scale: (rows * scale).contiguous() for scale in (1, 2)}  # sums of up to 8 of them are exact
        self.offset_of_capacity = self.dispatch(0, capacity)[1]
        self.cycles_per_us = self.calibrate()

    def calibrate(self) -> float:
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(2):
            begin.record()
            torch.cuda._sleep(10_000_000)
            end.record()
            torch.cuda.synchronize()
        return 10_000_000 / (begin.elapsed_time(end) * 1e3)

    def dispatch(self, tokens: int, limit: int, scale: int = 1):
        ids, weights = self.ids[:tokens], self.weights[:tokens]
        payloads = [self.rows[scale][:tokens], ids, weights]
        place = (self.rank, self.size, TOP_K, EXPERTS)
        views, offset, _ = self.api.moe_a2a_dispatch(ids, payloads, self.workspace, self.metainfo, limit, *place)
        return views, offset

    def round(self, tokens: int, limit: int, scale: int, cure: str):
        """Dispatch, experts that return what they got, combine; the sum of a token is due to be its row x targets."""
        limit = self.capacity if cure == "constant_max" else limit
        views, offset = self.dispatch(tokens, limit, scale)
        offset = self.offset_of_capacity if cure == "fixed_offset" else offset
        size_bytes = self.size * limit * HIDDEN * 2
        partials = self.workspace[self.rank, offset : offset + size_bytes].view(views[0].dtype).view(views[0].shape)
        partials.copy_(views[0])
        place = (self.rank, self.size, TOP_K, offset)
        return self.api.moe_a2a_combine(
            partials, tokens, self.workspace, self.metainfo, limit, *place, payload_in_workspace=True
        )

    def pair(self, rounds, gap_us: float, cure: str, scale: int):
        """Two rounds in turn, with other work of `gap_us` between them."""
        import torch

        outputs = []
        for index, (tokens, limit) in enumerate(rounds):
            if gap_us:
                torch.cuda._sleep(int(gap_us * self.cycles_per_us))
            if cure == "barrier" and index:
                self.meet()
            if cure == "empty_dispatch" and index:
                self.dispatch(0, rounds[index - 1][1])
            kind = 1 + (scale + index) % 2
            outputs.append((index, tokens, kind, self.round(tokens, limit, kind, cure)))
        return outputs

    def meet(self) -> None:
        import torch
        import torch.distributed as dist

        torch.cuda.synchronize()
        dist.barrier()

    def case(self, *, rounds: list, gap_us: float, cure: str) -> dict:
        """Wrong combines and rows by round of the pair, and what a pair takes."""
        import torch

        mine = [(tokens[self.rank], limit) for tokens, limit in rounds]
        wrong, wrong_rows = (torch.zeros(len(mine), dtype=torch.int64, device="cuda") for _ in range(2))

        def pairs():
            outputs = [self.pair(mine, gap_us, cure, number) for number in range(PAIRS_PER_GRAPH)]
            for index, tokens, kind, output in (one for pair in outputs for one in pair):
                due = self.rows[kind][:tokens] * self.target_count[:tokens]
                bad = (output != due).any(1)
                wrong[index] += bad.any()
                wrong_rows[index] += bad.sum()

        replay = pairs if cure == "barrier" else self.captured(pairs)
        wrong.zero_()
        wrong_rows.zero_()
        for _ in range(self.replays):
            self.meet()
            replay()
        self.meet()
        found = {"wrong_combines": wrong.tolist(), "wrong_rows": wrong_rows.tolist()}
        return {"pairs": self.replays * PAIRS_PER_GRAPH, **found, "pair_us": self.time_pair(mine, cure)}

    def captured(self, pairs):
        import torch

        pairs()
        self.meet()
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            pairs()
        return graph.replay

    def time_pair(self, mine, cure: str) -> float:
        """Median time of a pair, back to back, without checks; on the slowest rank it is the caller's to choose."""
        import torch

        def pairs():
            for number in range(PAIRS_PER_GRAPH):
                self.pair(mine, 0, cure, number)

        replay, times_us = (pairs if cure == "barrier" else self.captured(pairs)), []
        for _ in range(TIMED_REPLAYS):
            self.meet()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            replay()
            end.record()
            torch.cuda.synchronize()
            times_us.append(begin.elapsed_time(end) * 1e3 / PAIRS_PER_GRAPH)
        return round(statistics.median(times_us), 1)


# ---------------------------------------------------------------------------------------------- the cases


def growing(ranks: int, capacity: int, *, first: int, others: int) -> list:
    """Two rounds: rank 0 pulls `first` tokens for long while the others have `others`; then the others are full."""
    return [
        [[first, *[others] * (ranks - 1)], max(first, others)],
        [[1, *[capacity] * (ranks - 1)], capacity],
    ]


def cases_of(ranks: int, capacity: int, gaps: list[float], raggedness: list[float], cures: list[str]) -> list[dict]:
    """By gap at full raggedness, by raggedness without a gap, then the cures; and loads that are right."""
    half = capacity // 2
    ragged = growing(ranks, capacity, first=half, others=1)
    cases = [{"what": "gap", "rounds": ragged, "gap_us": gap, "cure": "none"} for gap in gaps]
    for share in raggedness:
        others = max(1, round(half * share))
        rounds = growing(ranks, capacity, first=half, others=others)
        cases.append({"what": "raggedness", "rounds": rounds, "gap_us": 0, "cure": "none"})
    even = [[[half // 2] * ranks, half // 2], [[capacity] * ranks, capacity]]
    same = [[ragged[0][0], capacity], ragged[1]]
    decode = [[[64, *[3] * (ranks - 1)], 64], [[5, *[96] * (ranks - 1)], 96]]
    for what, rounds in (("even loads", even), ("same maximum", same), ("decoding", decode)):
        cases.append({"what": what, "rounds": rounds, "gap_us": 0, "cure": "none"})
    for cure in cures:
        cases += [
            {"what": what, "rounds": rounds, "gap_us": 0, "cure": cure}
            for what, rounds in (("cure", ragged), ("cure, even loads", even), ("cure, decoding", decode))
        ]
    return cases


# ---------------------------------------------------------------------------------------------- all ranks


def unable(reason: str) -> SystemExit:
    print(f"could not run: {reason}", file=sys.stderr, flush=True)
    return SystemExit(UNABLE)


@contextmanager
def shared_gpus(ranks: int, gpus: int):
    """An MPS daemon of our own where several ranks share a GPU; each may use its share of the threads."""
    if ranks <= gpus:
        yield
        return
    if shutil.which("nvidia-cuda-mps-control") is None:
        raise unable(f"{ranks} ranks on {gpus} GPUs need nvidia-cuda-mps-control, which is not on PATH")
    with tempfile.TemporaryDirectory() as folder:
        pipe, log = (Path(folder, name) for name in ("pipe", "log"))
        pipe.mkdir()
        log.mkdir()
        os.environ.update(CUDA_MPS_PIPE_DIRECTORY=str(pipe), CUDA_MPS_LOG_DIRECTORY=str(log))
        os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(100 * gpus // ranks)
        subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True, timeout=20)
        try:
            yield
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit -t 1\n", text=True, timeout=20, check=False)


def run_ranks(options: dict) -> list[list[dict]]:
    """The cases of every rank; processes are killed at the limit."""
    import torch.multiprocessing as mp

    context = mp.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=rank_main, args=(rank, options, answers)) for rank in range(options["ranks"])]
    for process in processes:
        process.start()
    found, until_s = {}, time.monotonic() + options["limit"]
    try:
        while len(found) < len(processes):
            rank, cases, error = answers.get(timeout=max(0.1, until_s - time.monotonic()))
            if error:
                raise unable(f"rank {rank}: {error}")
            found[rank] = cases
    except queue.Empty:
        raise unable(f"ranks {sorted(set(range(len(processes))) - set(found))} did not finish in time") from None
    finally:
        for process in processes:
            process.join(2)
            process.kill()
    return [found[rank] for rank in range(len(processes))]


def merged(case: dict, per_rank: list[dict]) -> dict:
    """One row per case out of every rank's."""
    return case | {
        "pairs": per_rank[0]["pairs"],
        "wrong_combines": [one["wrong_combines"] for one in per_rank],
        "wrong_rows": [one["wrong_rows"] for one in per_rank],
        "pair_us": max(one["pair_us"] for one in per_rank),
    }


def line(row: dict) -> str:
    """A row in words."""
    (first, first_limit), (second, second_limit) = row["rounds"]
    wrong = ", ".join(
        f"rank {rank}: {combines[0]} first and {combines[1]} second combines ({sum(rows)} rows)"
        for rank, (combines, rows) in enumerate(zip(row["wrong_combines"], row["wrong_rows"], strict=True))
        if any(combines)
    )
    return (
        f"{row['what']:>16}, cure {row['cure']}, {row['gap_us']:g} us between: tokens {first} of {first_limit}, then "
        f"{second} of {second_limit}: {row['pairs']} pairs, wrong: {wrong or 'none'}; {row['pair_us']} us per pair"
    )


def environment(options: dict) -> dict:
    """Versions and machine."""
    from importlib.metadata import version

    import torch

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    smi = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False).stdout.strip().splitlines()
    return {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python -m tools.findings changing_size " + " ".join(options["arguments"]),
        "flashinfer": version("flashinfer-python"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": smi,
        "gpus_used": options["gpus"],
        "ranks": options["ranks"],
        "hidden": HIDDEN,
        "experts": EXPERTS,
        "top_k": TOP_K,
    }


def options_of(arguments: list[str]) -> dict:
    made = argparse.ArgumentParser(prog="changing_size", description=__doc__.splitlines()[0])
    made.add_argument("--ranks", type=int, default=2)
    made.add_argument("--capacity", type=int, default=4096, help="tokens per rank for which the workspace is sized")
    made.add_argument("--gaps", type=float, nargs="*", default=[0, 50, 200], help="us of other work between rounds")
    made.add_argument("--raggedness", type=float, nargs="*", default=[0.5], help="load of the others over rank 0's")
    made.add_argument("--cures", nargs="*", default=["fixed_offset"], choices=(*CURES, "all"))
    made.add_argument("--replays", type=int, default=30, help="per case, of five pairs each")
    made.add_argument("--limit", type=float, default=300.0, help="seconds after which the processes are killed")
    made.add_argument("--out", type=Path, help="write the rows there, as JSON")
    chosen = made.parse_args(arguments)
    cures = list(CURES) if "all" in chosen.cures else chosen.cures
    cases = cases_of(chosen.ranks, chosen.capacity, chosen.gaps, chosen.raggedness, cures)
    return vars(chosen) | {"all_cases": cases, "arguments": arguments, "port": random.randint(20_000, 40_000)}


def require_gpus(ranks: int) -> int:
    """GPUs to use."""
    missing = [name for name in ("torch", "flashinfer") if importlib.util.find_spec(name) is None]
    if missing:
        raise unable(f"{' and '.join(missing)} cannot be imported: it needs torch and flashinfer-python")
    import torch

    if not torch.cuda.is_available():
        raise unable("no CUDA device is visible: it needs one or more NVIDIA GPUs")
    return min(ranks, torch.cuda.device_count())


def main(arguments: list[str] | None = None) -> int:
    options = options_of(sys.argv[1:] if arguments is None else arguments)
    try:
        return reproduce(options | {"gpus": require_gpus(options["ranks"])})
    except SystemExit as end:
        return int(end.code)


def reproduce(options: dict) -> int:
    """Run the cases, print and keep them."""
    about = environment(options)
    print(json.dumps(about), flush=True)
    cases = options["all_cases"]
    plain = {name: value for name, value in options.items() if not isinstance(value, Path)}
    plain["cases"] = [{name: case[name] for name in ("rounds", "gap_us", "cure")} for case in cases]
    with shared_gpus(options["ranks"], options["gpus"]):
        per_rank = run_ranks(plain)
    rows = [merged(case, list(one)) for case, one in zip(cases, zip(*per_rank, strict=True), strict=True)]
    print("\n".join(map(line, rows)), flush=True)
    if options["out"]:
        options["out"].parent.mkdir(parents=True, exist_ok=True)
        options["out"].write_text(json.dumps({"provenance": about, "rows": rows}, indent=1) + "\n")
    return FOUND if any(any(combines) for row in rows for combines in row["wrong_combines"]) else CLEAN


if __name__ == "__main__":
    sys.exit(main())
