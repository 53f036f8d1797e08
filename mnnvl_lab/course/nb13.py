"""Exercises of notebook 13: capacity, runtime max and tokens, the batches of a server, padding, TP replicas."""

from __future__ import annotations

from dataclasses import replace

from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import require_model
from mnnvl_lab.routing import Load, Padding, Server, Step, Uniform
from mnnvl_lab.routing.traffic import rows_RR
from mnnvl_lab.transport.validation import ids_problem
from mnnvl_lab.workspace import OneSidedWorkspace

EP_SIZE, TOKENS, CAPACITY = 8, 128, 8192
OVERSIZED = Load(routing=Uniform(), tokens=TOKENS, runtime_max_tokens=CAPACITY)
PUBLIC = (1024, 512, 512, 512)
BUDGET, DECODED = 2048, 300
SPARSE = Load(routing=Uniform(), tokens=64, runtime_max_tokens=4096)


def shape(ep_size: int) -> dict[str, int]:
    model = require_model("deepseek-v3")
    return {"experts": model.experts, "top_k": model.top_k, "ep_size": ep_size}


def capacity_changes() -> str:
    """What of a round of 128 tokens differs between a capacity of 128 and one of 8,192."""
    model = require_model("deepseek-v3")
    numbers = {"hidden": model.hidden, "experts": model.experts, "top_k": model.top_k}
    small = Exchange(mode="one_sided", layout=Layout(dp=EP_SIZE), max_tokens=TOKENS, **numbers)
    sizes = [OneSidedWorkspace.of(x).workspace_bytes for x in (small, replace(small, max_tokens=CAPACITY))]
    return "memory" if sizes[0] < sizes[1] else "nothing"


def drafted() -> int:
    return Server(dp=1, running=64, spread=0, drafts=3).decode().tokens_D[0]


def chunk() -> int:
    """Prompt tokens that fit beside the decoded ones."""
    return Server(dp=1, running=DECODED, prompt=100_000, budget=BUDGET, spread=0).mixed().prefill_D[0]


def surplus() -> int:
    """Rows of padding that reach rank 0 in the public case."""
    load = Load(routing=Uniform(), tokens=PUBLIC)
    padded = replace(load, padding=Padding.to_fullest(PUBLIC))
    return int((rows_RR(padded, **shape(4)) - rows_RR(load, **shape(4)))[:, 0].sum())


def replica_factor() -> float:
    """Rows without sequence parallelism over rows with it, DP 2 x TP 2 with 128 tokens per DP rank."""
    step = Step(kind="decode", prefill_D=(0, 0), decode_D=(128, 128), dummy_D=(0, 0))
    sent = [rows_RR(step.load(tp=2, sequence_parallel=sp), **shape(4)).sum() for sp in (False, True)]
    return sent[0] / sent[1]


def fate_of_id_e() -> str:
    x = Exchange(
        mode="one_sided",
        layout=Layout(dp=4),
        max_tokens=8,
        hidden=64,
        experts=256,
        top_k=8,
        invalid_ids="as_kernel",
    )
    return "refused" if ids_problem(x, 0, x.experts) else "nowhere"


def filled_percent() -> float:
    return 100 * 32 * SPARSE.max_tokens / SPARSE.buffer_rows(32)


EXERCISES = (
    Exercise(
        number="13.1",
        asks="How many rows does the buffer of one rank's experts have, at EP8 and a runtime max of 8,192?",
        solution=lambda: OVERSIZED.buffer_rows(EP_SIZE),
        reason="The buffer is [R, M]: M rows for each of the R sources, whether they arrived or not.",
        hints=("One block of rows per source. How many rows has a block, and how many sources are there?",),
        mistakes=(
            Mistake(guess=lambda: EP_SIZE * TOKENS, message="those are the tokens that exist; the buffer is larger"),
            Mistake(guess=lambda: CAPACITY, message="that is the block of one source"),
        ),
    ),
    Exercise(
        number="13.2",
        asks="The capacity grows from 128 to 8,192 while rounds stay as they are. What changes?",
        solution=capacity_changes,
        options=("memory", "latency", "rows", "nothing"),
        reason="The workspace is sized by the capacity, but a round places its regions by the runtime max and moves "
        "the rows that exist.",
        hints=("Which of the three numbers does `ExchangeShape` have, and which a `Load`?",),
    ),
    Exercise(
        number="13.3",
        asks="How many rows does a rank send per step, with 64 requests and 3 drafted tokens each?",
        solution=drafted,
        reason="Each request sends its own token and its drafts, and all of them pass through the experts.",
        hints=("How many tokens per request are verified in one step?",),
        mistakes=(Mistake(guess=lambda: 64 * 3, message="those are the drafts alone; the next token is sent too"),),
    ),
    Exercise(
        number="13.4",
        asks="How many prompt tokens fit into a batch of at most 2,048 tokens, beside 300 requests that decode?",
        solution=chunk,
        reason="Decode comes first with a token per request, and the chunk takes what the budget has left.",
        hints=("The budget counts both kinds of tokens.",),
        mistakes=(Mistake(guess=lambda: BUDGET, message="the tokens that decode need room in the same batch"),),
    ),
    Exercise(
        number="13.5",
        asks="How many rows of padding does rank 0 receive in the public case, with id -1 and FlashInfer 0.7.2?",
        solution=surplus,
        reason="All padding of the three ranks, one row each: -1 divided by 64 is 0 in C, so rank 0 is the target, "
        "and the eight choices of a row are one row.",
        hints=(
            "How many rows of padding are there in all?",
            "Does a row with eight equal choices travel once or more?",
        ),
        mistakes=(
            Mistake(guess=lambda: surplus() * 8, message="those are copies; a row goes to a rank once"),
            Mistake(guess=lambda: surplus() // 3, message="that is the padding of one rank"),
        ),
    ),
    Exercise(
        number="13.6",
        asks="By which factor are there more rows without sequence parallelism, on DP 2 x TP 2?",
        solution=lambda: round(replica_factor(), 1),
        tolerance=0.1,
        reason="Without it each TP rank sends all tokens of its DP rank, so every row travels once per TP rank.",
        hints=("How many ranks hold the same tokens?",),
    ),
    Exercise(
        number="13.A",
        asks="What does this lab do with padding of id E, one-sided, `as_kernel`: rank 0, nowhere, or refused?",
        solution=fate_of_id_e,
        options=("rank 0", "nowhere", "refused"),
        reason="E divided by a rank's share is R, which is no rank: the kernel would write through an address that it "
        "reads from beside its table.",
        hints=("Which rank would own expert 256 of 256, and is there such a rank?",),
    ),
    Exercise(
        number="13.B",
        asks="At most what part of the buffer can be filled, at EP32 with 64 tokens and a runtime max of 4,096?",
        solution=lambda: round(filled_percent(), 1),
        tolerance=0.2,
        unit="%",
        reason="A block of M rows can receive no more than the tokens of its source, whatever the number of ranks.",
        hints=("Look at the block of one source alone.",),
    ),
)
