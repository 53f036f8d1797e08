"""A script in place of a notebook: starts ranks under Slurm, says where they are, and waits or ends."""

import os
import subprocess
import sys
import time

from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
from tests import ranks_helpers as on


def queue():
    return subprocess.run(["squeue", "--noheader", "--format=%i %T %r"], capture_output=True, text=True).stdout.strip()


def main():
    with Ranks(Layout(tp=2, dp=2, gpus_per_node=2), launcher="slurm", progress=False) as ranks:
        if sys.argv[1:] != ["jobs"]:
            print(*ranks.run(on.pid))
            time.sleep(600)
        print(*ranks.run(on.environment, "SLURMD_NODENAME"))
        print(queue())
    print(f"job {os.environ['SLURM_JOB_ID']} still runs" if "RUNNING" in queue() else "the job is gone")


if __name__ == "__main__":
    main()
