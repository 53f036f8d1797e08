"""FlashInfer's two-sided MoE all-to-all loses a step of `moe_prepare`: a reproducer by FlashInfer's Python API alone.

    python two_sided_prepare.py            two GPUs with NVLink, two processes, under a minute
    python two_sided_prepare.py --fixed    the same with one condition of the kernel changed

After some thousands of calls a rank receives the expert ids and routing weights of the call before, for tokens of its
own, and from then on in most calls. It happens where the packets that a rank sends to one target fill the last
step (see `publishes_twice`). Exit status: 0 nothing wrong, 1 the fault was found, 2 it could not run.

`--fixed` builds FlashInfer's module `comm` from its installed sources with `sendFinalize` publishing the last step only
if it is not full, since `finishSendPacket` has published it already if it is.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.util
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

FOUND, CLEAN, UNABLE = 1, 0, 2
EXPERTS, HIDDEN = 256, 512
CONDITION = "if (packetId > 0 && threadIdx.x == 0) {"
MENDED = "if (packetId > 0 && packetId < PipelineConfig::PACKET_PER_STEP && threadIdx.x == 0) {"
FIFO_WORDS, CONNECTION_WORDS = 1024 * 1024 // 8, 32  # uint64 words of a peer's FIFO and of its head, tail and count
PREPARES_PER_GRAPH = 20
PREPARES_PER_CHECK = 200
CHECKS_AFTER_THE_FIRST_WRONG = 10
TRAFFIC_BYTES = 64 << 20
TRAFFIC = ("none", "copies", "link")
"""Beside the prepares: nothing, copies within the GPU's memory, or writes into the next rank's over the link."""


def packets(rows: int, top_k: int, experts: int = EXPERTS) -> int:
    """Packets of `allToAllMetadataDevice` to one target: 256 units each, a unit 4 ids, or 1 if top_k % 4 is not 0."""
    units = rows * top_k // (4 if top_k % 4 == 0 else 1)
    return max(-(-units // 256), -(-experts // 512)) if units else 0


def publishes_twice(rows: int, top_k: int, experts: int = EXPERTS) -> bool:
    """Whether the packets to one target fill the last step (16 packets, or 64 if top_k % 4 is not 0)."""
    count = packets(rows, top_k, experts)
    return count > 0 and count % (16 if top_k % 4 == 0 else 64) == 0


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
    """One rank's side, by `flashinfer.comm.trtllm_alltoall.MnnvlMoe`."""

    def __init__(self, rank: int, size: int, options: dict):
        import torch
        from flashinfer.comm import Mapping, trtllm_alltoall
        from flashinfer.comm.comm_backend import TorchDistBackend
        from flashinfer.comm.mnnvl import MnnvlConfig

        class Backend(TorchDistBackend):
            def Split(self, color, key):
                return self

        if options["library"]:
            use_library(trtllm_alltoall, options["library"])
        if size > options["gpus"]:
            present = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
            trtllm_alltoall.set_moe_max_usable_sm_count(min(present, 132 * options["gpus"] // size))
        self.rank, self.size, self.budget_s, self.moe = rank, size, options["seconds"], trtllm_alltoall.MnnvlMoe
        self.prepares = options["prepares"]
        mapping = Mapping(world_size=size, rank=rank, gpus_per_node=size, tp_size=size, moe_ep_size=size)
        config = MnnvlConfig(comm_backend=Backend(None))
        self.fifos = self.moe.get_moe_workspaces(mapping, config)
        self.workspace = self.moe.get_moe_prepare_workspace(mapping, config)
        own = self.workspace.view(torch.int64)[rank, FIFO_WORDS * size :]
        self.words = own.view(size, CONNECTION_WORDS)  # head, tail and count of each connection that this rank sends on
        noise = torch.zeros(TRAFFIC_BYTES // 8, dtype=torch.int64, device="cuda")
        idle_fifos = self.fifos.view(torch.int64)[(rank + 1) % size][: len(noise)]  # no rows move beside prepares
        self.noise = {"copies": (torch.empty_like(noise), noise), "link": (idle_fifos, noise)}
        self.side = torch.cuda.Stream()
        self.reset()

    def case(self, *, tokens: int, top_k: int, traffic: str) -> dict:
        """The rate of lost steps, then what becomes of one that nobody resets."""
        import torch

        self.tokens, self.top_k, self.traffic = tokens, top_k, traffic
        seeds = (1000 * tokens + 10 * top_k + rank for rank in range(self.size))
        self.generators = [torch.Generator(device="cuda").manual_seed(seed) for seed in seeds]
        ids, weights = self.draw()[self.rank]
        self.ids, self.weights = ids.clone(), weights.clone()
        targets = (ids // (EXPERTS // self.size)).long()
        hit = torch.zeros(tokens, self.size, dtype=torch.bool, device="cuda").scatter_(1, targets, True)
        rows = hit.sum(0).tolist()
        began_s = time.monotonic()
        rate = self.measure_rate()
        outcome = self.follow()
        return {
            "tokens": tokens,
            "top_k": top_k,
            "traffic": traffic,
            "rows_to": rows,
            "published_twice_to": [target for target, n in enumerate(rows) if publishes_twice(n, top_k)],
            **rate,
            **outcome,
            "seconds": round(time.monotonic() - began_s, 2),
        }

    def draw(self):
        """Fresh routing of all ranks: ids `[tokens, top_k]` and weights, the same on every rank."""
        import torch

        def table(generator):
            keys = torch.rand(self.tokens, EXPERTS, device="cuda", generator=generator)
            weights = torch.rand(self.tokens, self.top_k, device="cuda", generator=generator)
            return keys.topk(self.top_k, -1).indices.int().contiguous(), weights

        return [table(generator) for generator in self.generators]

    def prepare(self):
        ids, weights = self.ids, self.weights
        place = (self.tokens, self.rank, self.size, EXPERTS, EXPERTS, self.top_k)
        return self.moe.mnnvl_moe_alltoallv_prepare_without_allgather(ids, weights, None, self.workspace, *place)

    def meet(self) -> None:
        import torch
        import torch.distributed as dist

        torch.cuda.synchronize()
        dist.barrier()

    def reset(self) -> None:
        """Heads and tails to 0 on all ranks while nothing is in flight."""
        self.meet()
        self.words[:, :2].zero_()
        self.meet()

    def graph(self, after):
        """Prepares back to back in a CUDA graph, `after` each of them."""
        import torch

        self.prepare()
        self.meet()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(PREPARES_PER_GRAPH):
                self.prepare()
                after()
        self.reset()
        return graph

    def replay(self, graph, count: int) -> None:
        import torch

        for _ in range(count):
            graph.replay()
        if self.traffic != "none":
            target, source = self.noise[self.traffic]
            with torch.cuda.stream(self.side):
                for _ in range(4 * count):
                    target.copy_(source)
        self.meet()

    def measure_rate(self) -> dict:
        """How many prepares lose a step, each looked at and reset on the device, so that every one is a fresh trial.

        The words of the connection to the rank itself are at rest when its prepare ends; those to other ranks only when
        all have met, so of these one loss at most is seen in a replay.
        """
        import torch

        lost, own = torch.zeros(1, dtype=torch.int64, device="cuda"), self.words[self.rank]

        def look_and_reset():
            lost.add_(own[:1] != 0)
            own[:2].zero_()

        graph, prepares, to_peers = self.graph(look_and_reset), 0, 0
        lost.zero_()
        began_s = time.monotonic()
        while prepares < self.prepares and self.all_agree(time.monotonic() - began_s < self.budget_s):
            self.replay(graph, PREPARES_PER_CHECK // PREPARES_PER_GRAPH)
            prepares += PREPARES_PER_CHECK
            to_peers += int((self.words[:, 0] != 0).sum())
            self.reset()
        return {"prepares": prepares, "lost_to_itself": int(lost), "lost_to_peers": to_peers}

    def all_agree(self, go_on: bool) -> bool:
        import torch
        import torch.distributed as dist

        flag = torch.tensor([int(go_on)])
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag.item())

    def follow(self) -> dict:
        """Prepares that nobody resets, a checked round with fresh routing after each 200 of them."""
        graph, prepares, found, checks = self.graph(lambda: None), 0, [], 0
        began_s = time.monotonic()
        while prepares < self.prepares and self.all_agree(time.monotonic() - began_s < self.budget_s):
            self.replay(graph, PREPARES_PER_CHECK // PREPARES_PER_GRAPH)
            prepares += PREPARES_PER_CHECK
            checks += 1
            if self.anyone(self.checked_round(found, prepares)):
                break
        first, later = (found[0] if found else None), []
        if self.anyone(bool(found)):
            for _ in range(CHECKS_AFTER_THE_FIRST_WRONG):
                self.checked_round(later, prepares)
        heads = self.words[:, 0].tolist()
        self.reset()
        return {
            "checked_rounds": checks,
            "prepares_until_checked_wrong": prepares,
            "first_wrong": first,
            "wrong_of_later_checks": [len(later), CHECKS_AFTER_THE_FIRST_WRONG],
            "heads_left": heads,
        }

    def anyone(self, mine: bool) -> bool:
        return not self.all_agree(not mine)

    def checked_round(self, found: list, prepares: int) -> bool:
        """A prepare with fresh routing and a move of rows that name their token: are ids and weights those rows'?"""
        import torch

        tables = self.draw()
        self.ids.copy_(tables[self.rank][0])
        self.weights.copy_(tables[self.rank][1])
        token = torch.arange(self.tokens, device="cuda")
        rows = torch.zeros(self.tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
        rows[:, 0], rows[:, 1] = (token % 128).bfloat16(), (token // 128).bfloat16()
        self.meet()
        info, ids, weights, _ = self.prepare()
        received = self.moe.mnnvl_moe_alltoallv(rows, info, self.fifos, self.rank, self.size)
        torch.cuda.synchronize()
        ends = info.recv_rank_count_cumsum.tolist()
        for source, (low, high) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            names = (received[low:high, 0].float() + 128 * received[low:high, 1].float()).long()
            sent_ids, sent_weights = tables[source][0][names], tables[source][1][names]
            due = torch.where(sent_ids // (EXPERTS // self.size) == self.rank, sent_ids, EXPERTS)
            wrong = (ids[low:high] != due).any(1) | (weights[low:high] != sent_weights).any(1)
            if count := int(wrong.sum()):
                found.append({"after_prepares": prepares, "source": source, "rows": high - low, "wrong_rows": count})
        self.meet()
        return bool(found)


# ---------------------------------------------------------------------------------------------- the mended module


def mended(source: str) -> str:
    """The text of `trtllm_alltoall_prepare.cu` with the one condition changed.

    Raises:
        SystemExit: it is not there exactly once: another version, perhaps mended already.
    """
    if source.count(CONDITION) != 1:
        raise unable(
            f"the installed sources hold {CONDITION!r} {source.count(CONDITION)} times where 1 is expected: "
            "this version of FlashInfer is another one, perhaps mended already; use 0.7.2"
        )
    return source.replace(CONDITION, MENDED)


def build(folder: Path) -> Path:
    """Compile FlashInfer's module `comm` with the mended condition; needs its sources and nvcc, and no GPU."""
    from flashinfer.jit import env
    from flashinfer.jit.core import gen_jit_spec

    original = env.FLASHINFER_CSRC_DIR / "trtllm_alltoall_prepare.cu"
    if not original.exists():
        raise unable(f"{original} does not exist: this FlashInfer is installed without sources; give --library")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / original.name
    source.write_text(mended(original.read_text()))
    spec = gen_jit_spec("comm_mended", [env.FLASHINFER_CSRC_DIR / "trtllm_alltoall.cu", source])
    spec.build(verbose=False)
    return Path(shutil.copy(spec.jit_library_path, folder / "comm_mended.so"))


def use_library(trtllm_alltoall, library: str) -> None:
    """Let FlashInfer's Python functions call another build of their module."""
    import tvm_ffi

    class Prebuilt:
        def build_and_load(self):
            return tvm_ffi.load_module(library)

    trtllm_alltoall.gen_comm_alltoall_module = Prebuilt
    trtllm_alltoall.get_comm_alltoall_module.cache_clear()


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


def merged(per_rank: list[dict]) -> dict:
    """One row per case out of every rank's."""
    first = per_rank[0]
    wrong = [(one["first_wrong"] | {"rank": rank}) for rank, one in enumerate(per_rank) if one["first_wrong"]]
    return {
        **{name: first[name] for name in ("tokens", "top_k", "traffic")},
        "rows": [one["rows_to"] for one in per_rank],
        "pairs_published_twice": sum(len(one["published_twice_to"]) for one in per_rank),
        "own_pairs_published_twice": sum(rank in one["published_twice_to"] for rank, one in enumerate(per_rank)),
        "prepares": first["prepares"],
        "lost_to_itself": [one["lost_to_itself"] for one in per_rank],
        "lost_to_peers": [one["lost_to_peers"] for one in per_rank],
        "checked_rounds": first["checked_rounds"],
        "prepares_until_checked_wrong": first["prepares_until_checked_wrong"],
        "first_wrong": min(wrong, key=lambda one: one["after_prepares"], default=None),
        "wrong_of_later_checks": [one["wrong_of_later_checks"] for one in per_rank],
        "heads_left": [one["heads_left"] for one in per_rank],
        "seconds": first["seconds"],
    }


def line(row: dict) -> str:
    """A row in words."""
    lost = sum(row["lost_to_itself"]) + sum(row["lost_to_peers"])
    first = row["first_wrong"]
    wrong = (
        f"round {first['after_prepares'] + 1} wrong on rank {first['rank']}: {first['wrong_rows']} of {first['rows']} "
        f"rows from rank {first['source']} have ids and weights of another round"
        if first
        else f"{row['checked_rounds']} checked rounds right"
    )
    return (
        f"tokens {row['tokens']:5d}, top-{row['top_k']}{'' if row['traffic'] == 'none' else ', ' + row['traffic']}: "
        f"{row['pairs_published_twice']} pairs fill their last step; {lost} steps lost in {row['prepares']} prepares; "
        f"{wrong}"
    )


def environment(options: dict) -> dict:
    """Versions and machine."""
    from importlib.metadata import version

    import torch

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    smi = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False).stdout.strip().splitlines()
    library = options["library"]
    return {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python -m tools.findings two_sided_prepare " + " ".join(options["arguments"]),
        "flashinfer": version("flashinfer-python"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": smi,
        "gpus_used": options["gpus"],
        "ranks": options["ranks"],
        "fixed": bool(library),
        "library_sha256": hashlib.sha256(Path(library).read_bytes()).hexdigest() if library else None,
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="two_sided_prepare", description=__doc__.splitlines()[0])
    made.add_argument("--fixed", action="store_true", help="build the module with the condition changed, and use it")
    made.add_argument("--library", type=Path, help="a module that --build made; with --fixed")
    made.add_argument("--build", type=Path, metavar="FOLDER", help="only build the mended module, into FOLDER")
    made.add_argument("--ranks", type=int, default=2)
    made.add_argument("--tokens", type=int, nargs="+", default=[2048, 2100, 4096])
    made.add_argument("--top-k", type=int, nargs="+", default=[8])
    made.add_argument("--traffic", choices=TRAFFIC, nargs="+", default=["link"], help="beside the prepares")
    made.add_argument("--prepares", type=int, default=40_000, help="per case, at most, twice: reset and not reset")
    made.add_argument("--seconds", type=float, default=4.0, help="per case, at most, twice")
    made.add_argument("--limit", type=float, default=300.0, help="seconds after which the processes are killed")
    made.add_argument("--out", type=Path, help="write the rows there, as JSON")
    return made


def options_of(arguments: list[str]) -> dict:
    chosen = parser().parse_args(arguments)
    cases = [
        {"tokens": tokens, "top_k": top_k, "traffic": traffic}
        for top_k in chosen.top_k
        for tokens in chosen.tokens
        for traffic in chosen.traffic
    ]
    return vars(chosen) | {"cases": cases, "arguments": arguments, "port": random.randint(20_000, 40_000)}


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
        if options["build"]:
            print(build(options["build"]))
            return CLEAN
        return reproduce(options | {"gpus": require_gpus(options["ranks"])})
    except SystemExit as end:
        return int(end.code)


def reproduce(options: dict) -> int:
    """Run the cases, print and keep them."""
    with tempfile.TemporaryDirectory() as folder:
        library = (options["library"] or build(Path(folder))) if options["fixed"] else None
        options |= {"library": str(Path(library).resolve()) if library else None}
        about = environment(options)
        print(json.dumps(about), flush=True)
        with shared_gpus(options["ranks"], options["gpus"]):
            plain = {name: value for name, value in options.items() if not isinstance(value, Path)}
            per_rank = run_ranks(plain)
    rows = [merged(list(one)) for one in zip(*per_rank, strict=True)]
    print("\n".join(map(line, rows)), flush=True)
    if options["out"]:
        options["out"].parent.mkdir(parents=True, exist_ok=True)
        options["out"].write_text(json.dumps({"provenance": about, "rows": rows}, indent=1) + "\n")
    return FOUND if any(map(is_wrong, rows)) else CLEAN


def is_wrong(row: dict) -> bool:
    return bool(row["first_wrong"]) or any(row["lost_to_itself"]) or any(row["lost_to_peers"])


if __name__ == "__main__":
    sys.exit(main())
