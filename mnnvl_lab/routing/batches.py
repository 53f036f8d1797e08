"""Batches of a server: what each data-parallel rank sends in one step of decode, prefill, chunked or mixed batches.

A rank without requests runs a dummy batch, so that the others find it in dispatch (vLLM, `execute_dummy_batch`).
Numbers of requests and lengths of prompts are drawn from a seed and equal on whichever machine draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mnnvl_lab.arguments import MOST_SEED, require_real
from mnnvl_lab.errors import named_fields, require_count
from mnnvl_lab.layout import MOST_RANKS, sp_token_counts
from mnnvl_lab.routing.distributions import Routing, parse
from mnnvl_lab.routing.padding import Padding
from mnnvl_lab.routing.random_bits import Purpose, bits, uniform
from mnnvl_lab.routing.traffic import Load

PARTS = ("prefill", "decode", "dummy", "padding")
MOST_PROMPTS = 4096
"""Prompts drawn per rank and step; no budget of tokens takes more."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the data-parallel (DP) ranks of a server run together.

    Attributes:
        kind: `decode`, `prefill`, `chunked` or `mixed`.
        prefill_D, decode_D, dummy_D: tokens of each DP rank, by what they are for.
    """

    kind: str
    prefill_D: tuple[int, ...]
    decode_D: tuple[int, ...]
    dummy_D: tuple[int, ...]

    @property
    def tokens_D(self) -> tuple[int, ...]:
        """Tokens of each DP rank."""
        return tuple(map(sum, zip(self.prefill_D, self.decode_D, self.dummy_D, strict=True)))

    def load(
        self,
        *,
        routing: Routing | str = "uniform",
        tp: int = 1,
        sequence_parallel: bool = False,
        pad_with: int | str | None = None,
        invalid_ids: str = "as_kernel",
        seed: int = 0,
    ) -> Load:
        """The round that the ranks of the EP group, DP x TP, exchange.

        Args:
            routing: a routing or its label.
            tp: tensor-parallel ranks of each DP rank. They hold the same tokens: without sequence parallelism each
                sends them all, as replicas; with it each sends its share, padded up.
            sequence_parallel: whether MoE layers split a DP rank's tokens over its TP ranks.
            pad_with: expert id of padding that brings every rank to the fullest one's rows; None for no padding.
            invalid_ids: what the transport does with padding of id -1 and E (`Padding`).
            seed: of choices and payloads.
        """
        tokens = tuple(sp_token_counts(self.tokens_D, tp=tp, sequence_parallel=sequence_parallel))
        padding = None
        if pad_with is not None:
            padding = Padding.to_fullest(tokens, expert_id=pad_with, invalid_ids=invalid_ids)
        replicas = 1 if sequence_parallel else tp
        return Load(routing=parse(routing), tokens=tokens, padding=padding, replicas=replicas, seed=seed)

    def to_frame(self) -> pd.DataFrame:
        """One row per DP rank and part: `rank, part, tokens`; padding up to the fullest rank is the last part."""
        fullest = max(self.tokens_D)
        padding_D = tuple(fullest - tokens for tokens in self.tokens_D)
        parts = dict(zip(PARTS, (self.prefill_D, self.decode_D, self.dummy_D, padding_D), strict=True))
        rows = [(rank, part, tokens) for part, counts in parts.items() for rank, tokens in enumerate(counts)]
        return pd.DataFrame(rows, columns=["rank", "part", "tokens"])


@named_fields
@dataclass(frozen=True, kw_only=True)
class Server:
    """A server whose steps are drawn from a seed.

    Attributes:
        dp: data-parallel ranks.
        running: median of the requests that a rank decodes at a time.
        prompt: median length of prompts, in tokens.
        budget: most tokens of a rank in one batch (vLLM's `max_num_batched_tokens`).
        spread: deviation of the logarithm of requests and prompts, which are log-normal; 0 for all equal.
        drafts: tokens that speculative decoding drafts; each request then sends `1 + drafts` per step.
        idle: DP ranks without a request; which ones is drawn.
        dummy: tokens of their dummy batch.
        seed: of all draws.

    Raises:
        Refused: a number is out of range.
    """

    dp: int
    running: int = 64
    prompt: int = 1024
    budget: int = 8192
    spread: float = 0.5
    drafts: int = 0
    idle: int = 0
    dummy: int = 1
    seed: int = 0

    def __post_init__(self):
        require_count("dp", self.dp, most=MOST_RANKS)
        for name in ("running", "prompt", "budget"):
            require_count(name, getattr(self, name))
        require_real("spread", self.spread, least=0, most=3)
        require_count("drafts", self.drafts, least=0, remedy="give 0 for no speculative decoding")
        require_count("idle", self.idle, least=0, most=self.dp, remedy="give 0 or more, at most dp")
        require_count("dummy", self.dummy, least=0, remedy="give 0 for no dummy batch")
        require_count("seed", self.seed, least=0, most=MOST_SEED)

    def decode(self, step: int = 0) -> Step:
        """Every running request sends one token, and its drafts."""
        return self._step("decode", step, decode_D=self._decoded(step))

    def prefill(self, step: int = 0) -> Step:
        """Whole prompts, as many as the budget holds, and at least the first, cut at the budget."""
        return self._step("prefill", step, prefill_D=[_whole(prompts, self.budget) for prompts in self._prompts(step)])

    def chunked(self, step: int = 0, *, waiting: int = 8) -> Step:
        """Prompts cut into chunks: the budget, or what is left of a rank's `waiting` prompts."""
        queued = [int(prompts[:waiting].sum()) for prompts in self._prompts(step)]
        return self._step("chunked", step, prefill_D=[min(self.budget, tokens) for tokens in queued])

    def mixed(self, step: int = 0, *, waiting: int = 1) -> Step:
        """Decode first, then a chunk of the `waiting` prompts in what the budget has left (vLLM's chunked prefill)."""
        decoded = [min(self.budget, tokens) for tokens in self._decoded(step)]
        queued = [int(prompts[:waiting].sum()) for prompts in self._prompts(step)]
        chunks = [min(self.budget - done, tokens) for done, tokens in zip(decoded, queued, strict=True)]
        return self._step("mixed", step, prefill_D=chunks, decode_D=decoded)

    def _step(self, kind: str, step: int, *, prefill_D: Sequence[int] = (), decode_D: Sequence[int] = ()) -> Step:
        """Idle ranks run a dummy batch in place of theirs."""
        idle = self._idle(step)
        nothing = [0] * self.dp
        return Step(
            kind=kind,
            prefill_D=tuple(0 if r in idle else int(n) for r, n in enumerate(prefill_D or nothing)),
            decode_D=tuple(0 if r in idle else int(n) for r, n in enumerate(decode_D or nothing)),
            dummy_D=tuple(self.dummy if r in idle else 0 for r in range(self.dp)),
        )

    def _decoded(self, step: int) -> list[int]:
        requests_D = self._log_normal(self.running, self.dp, step=step, stream=0)
        return (requests_D * (1 + self.drafts)).tolist()

    def _prompts(self, step: int) -> np.ndarray:
        """int64 `[D, prompts]`: lengths of the prompts that wait on each rank."""
        count = min(MOST_PROMPTS, max(16, 4 * self.budget // self.prompt))
        return self._log_normal(self.prompt, self.dp * count, step=step, stream=1).reshape(self.dp, count)

    def _idle(self, step: int) -> set[int]:
        order = np.argsort(self._words(self.dp, step=step, stream=2), kind="stable")
        return set(order[: self.idle].tolist())

    def _log_normal(self, median: int, count: int, *, step: int, stream: int) -> np.ndarray:
        """int64 `[count]`, at least 1: Box and Muller over two uniform numbers each."""
        radius, angle = uniform(self._words(2 * count, step=step, stream=stream)).reshape(-1, 2).T
        normal = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
        return np.maximum(1, np.round(median * np.exp(self.spread * normal))).astype(np.int64)

    def _words(self, count: int, *, step: int, stream: int) -> np.ndarray:
        return bits(count, seed=self.seed, purpose=Purpose.BATCHES, rank=stream, block=step)


def _whole(prompts: np.ndarray, budget: int) -> int:
    """Tokens of the first prompts that fit; of the first alone its first chunk, if it is longer than the budget."""
    ends = np.cumsum(prompts)
    fitting = ends[ends <= budget]
    return int(fitting[-1]) if len(fitting) else budget
