"""All benchmarks that need no GPU, one after the other: `python -m benchmarks`."""

import sys

from benchmarks import host_transport, lab

if __name__ == "__main__":
    sys.argv = sys.argv[:1]
    lab.main()
    host_transport.main()
