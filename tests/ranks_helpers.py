"""Rank functions for the tests of `ranks`, which a rank imports by name. Those that need torch import it themselves."""

import os
import re
import signal
import sys
import time

import numpy as np
import psutil

from mnnvl_lab.errors import RankError, Refused


class Kept:
    """An object that says in a file that it was closed."""

    def __init__(self, path):
        self.path = path

    def close(self):
        self.path.write_text("closed")


class Shared(Kept):
    """One whose `close` would wait for other ranks."""

    def abort(self):
        self.path.write_text("aborted")


def running(pid):
    """Not a rank function: whether a process is there and more than a dead one that nobody has asked about yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def place(rank):
    return rank.index, rank.layout.world_size, str(rank.device), rank.fabric


def pid(rank):
    return os.getpid()


def environment(rank, name):
    return os.environ.get(name)


def threads(rank):
    import torch

    return torch.get_num_threads()


def echo(rank, *args, **kwargs):
    return args, kwargs


def doubled(rank, array):
    array *= 2  # in place: what arrives must be writable
    return array


def speak(rank):
    print(f"rank {rank.index} speaks")
    print(f"rank {rank.index} warns", file=sys.stderr)


def refuse(rank):
    raise Refused("tokens is 9: at most 8; pass fewer")


def refuse_differently(rank):
    raise Refused(f"tokens is {rank.index}: at most 8; pass fewer")


def fail_on(rank, *failing):
    if rank.index in failing:
        raise ValueError(f"no luck on {rank.index}")
    return "fine"


def run_out_of_gpu_memory(rank):
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory")


def keep_gpu_busy(rank):
    """As if a kernel of rank 1 still spun: without CUDA nothing comes to rest."""
    if rank.index == 1:
        import torch

        rank.device = torch.device("cuda", 0)


def fail_while_others_wait(rank):
    if rank.index == 2:
        raise ValueError("left the others waiting")
    rank.group("world").barrier()


def leave_interpreter(rank):
    sys.exit("not today")


def unpicklable(rank):
    return lambda: None


def exit_hard(rank, who, code):
    rank.phase = "dispatch"
    if rank.index == who:
        os._exit(code)
    rank.group("world").barrier()


def kill_self(rank, who):
    if rank.index == who:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def sleep_on(rank, who, seconds):
    if rank.index == who:
        rank.phase = "combine"
        time.sleep(seconds)
    return rank.index


def hold_interpreter_lock(rank, who):
    """Stuck inside C code that never lets another thread run, like a kernel launch that never returns."""
    if rank.index == who:
        re.match(r"(a+)+$", "a" * 64 + "b")


def groups(rank, names):
    """Members of each group by layout, and the members that really meet in it."""
    found = {}
    for name in names:
        group = rank.group(name)
        found[name] = (group.ranks, tuple(group.allgather(rank.index)), group.rank)
    return found


def collectives(rank):
    import torch
    import torch.distributed as dist

    group = rank.group("ep")
    total = torch.tensor([rank.index])
    dist.all_reduce(total, group=group.process_group)
    group.barrier()
    return (
        group.broadcast(f"from {rank.index}", root=group.size - 1),
        int(total),
        group.device_group is group.process_group,
    )


class WaitsForPeers:
    """A kept object whose `close` waits on rank 1 for a dead peer."""

    def __init__(self, group):
        self.group = group

    def close(self):
        if self.group.rank == 1:
            time.sleep(60)  # NCCL and kernels, unlike Gloo, may never notice that a peer is gone


def keep_what_waits(rank):
    rank.kept["waits"] = WaitsForPeers(rank.group("world"))
    rank.group("world").barrier()


def keep(rank, path):
    rank.kept["first"] = Kept(path / f"{rank.index}")
    rank.kept["shared"] = Shared(path / f"shared-{rank.index}")
    rank.kept["array"] = np.arange(3)
    return len(rank.kept)


def kept(rank):
    return sorted(rank.kept)


def share(rank):
    """Leave a file in the segment directory, as a transport's segment."""
    path = rank.segment_dir / f"segment-{rank.index}"
    path.touch(mode=0o600)
    return path


def sum_on_device(rank):
    """Where the rank computes, and its index summed over the ranks by the device's own collective."""
    import torch
    import torch.distributed as dist

    total = torch.tensor([float(rank.index)], device=rank.device)
    dist.all_reduce(total, group=rank.group("ep").device_group)
    return str(rank.device), float(total)


def multiply_on_device(rank):
    """A product that shows that the rank's device computes, and what MPS lets it have."""
    import torch

    ones = torch.ones(64, 64, device=rank.device)
    return str(rank.device), float((ones @ ones)[0, 0]), os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")


def meet_in_turn(rank, groups):
    """What the members of each group gather, in turn; others go on to the next."""
    from mnnvl_lab.ranks.group import Group

    said = []
    for ranks in groups:
        if rank.index in ranks:
            group = Group(name=f"some {ranks}", ranks=ranks, member=rank.index, fabric="host")
            said.append(tuple(group.allgather(rank.index)))
    return said


def gather_sizes(rank, sizes):
    """Lengths of the objects that every rank sees, of which some are too large for one collective call."""
    return [len(part) for part in rank.group("world").allgather(b"x" * sizes[rank.index])]


def gather_or_die(rank, dies):
    """Everyone waits for a rank that has died."""
    if rank.index == dies:
        os._exit(3)
    rank.group("world").allgather(None)


def die_in_round(rank, point, dies, phase):
    """One rank ends where the others already wait for its flags or FIFO entries: nobody meets in between."""
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    with open_transport(rank, point.exchange) as transport:
        batch = Work.of(rank, point).batch()
        transport.validate(batch)
        if (rank.index, phase) == (dies, "dispatch"):
            kill_self(rank, dies)
        handle = transport.dispatch(batch, validated=True).handle
        transport.group.barrier()
        if rank.index == dies:
            kill_self(rank, dies)
        transport._combine(transport.partials_buffer(handle), handle)


def out_of_step(rank, odd):
    """One rank is at another collective call than the rest; how it is told, and that the group works afterwards."""
    group = rank.group("world")
    try:
        group.barrier() if rank.index == odd else group.allgather(rank.index, call="check a batch")
    except RankError as error:
        return error.rank, error.cause, group.allgather(rank.index)


def boards_after_gathering(rank):
    """Segments of boards that this process maps, after calls in two groups."""
    from tests.transport_helpers import segments

    rank.group("world").barrier()
    rank.group("ep").barrier()
    return segments("board")


def rounds_of_sizes(rank, mode, sizes):
    """Checked rounds of these sizes, one after another, on one workspace; how many there were."""
    from mnnvl_lab.exchange import Exchange
    from mnnvl_lab.measure import Point
    from mnnvl_lab.measure.check import checked_round
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.routing import Load, Uniform
    from mnnvl_lab.transport import open_transport

    exchange = Exchange(mode=mode, layout=rank.layout, max_tokens=max(sizes), hidden=256, experts=32, top_k=8)
    with open_transport(rank, exchange) as transport:
        for seed, tokens in enumerate(sizes):
            point = Point(exchange=exchange, load=Load(routing=Uniform(), tokens=tokens, seed=seed))
            work = Work.of(rank, point)
            checked_round(transport, work, work.batch())
    return len(sizes)


def refuse_late(rank, seconds):
    """All ranks refuse alike, the last one later than the others."""
    time.sleep(seconds if rank.index == rank.layout.world_size - 1 else 0)
    raise Refused("the words are alike")
