"""Functions that the tests of `ranks` run on ranks: a rank imports them by name."""

import os
import signal
import sys
import time

from mnnvl_lab.errors import Refused


def place(rank):
    return rank.index, rank.layout.world_size, str(rank.device)


def pid(rank):
    return os.getpid()


def echo(rank, *args, **kwargs):
    return args, kwargs


def speak(rank):
    print(f"rank {rank.index} speaks")
    print(f"rank {rank.index} warns", file=sys.stderr)
