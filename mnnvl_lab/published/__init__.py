"""Readers of what other benchmarks write, each into published figures: the columns of `data/published/`.

A figure keeps its clock, what its bandwidth counts, and what to beware of. Published figures are context: drawn in grey
(`plots.context`), never joined with records, whose columns differ. Built from the writers' sources, and tried on
real output where some could be had: CollectiveX (an assembled run) and nccl-tests (GB300); FlashInfer's and
TensorRT-LLM's files follow their writers alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

import pandas as pd

from mnnvl_lab.errors import choose
from mnnvl_lab.published.aiconfigurator import read_aiconfigurator
from mnnvl_lab.published.collectivex import read_collectivex
from mnnvl_lab.published.flashinfer import read_flashinfer
from mnnvl_lab.published.nccl_tests import read_nccl_tests
from mnnvl_lab.published.tensorrt_llm import read_tensorrt_llm

__all__ = [
    "READERS",
    "read_aiconfigurator",
    "read_collectivex",
    "read_flashinfer",
    "read_nccl_tests",
    "read_published",
    "read_tensorrt_llm",
]

READERS: Mapping[str, Callable[[str | os.PathLike], pd.DataFrame]] = MappingProxyType(
    {
        "aiconfigurator": read_aiconfigurator,
        "collectivex": read_collectivex,
        "flashinfer": read_flashinfer,
        "tensorrt_llm": read_tensorrt_llm,
        "nccl_tests": read_nccl_tests,
    }
)


def read_published(path: str | os.PathLike, *, format: str) -> pd.DataFrame:
    """A file of another benchmark as published figures.

    Args:
        format: `aiconfigurator`, `collectivex`, `flashinfer`, `tensorrt_llm` or `nccl_tests`.

    Returns:
        A row per figure, in the columns of `datasets.load_published`.

    Raises:
        RecordError: no such file, or not of that format. Refused: no such format.
    """
    return READERS[choose(format, READERS, "format")](path)
