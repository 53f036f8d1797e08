"""Errors that people met in public when ranks were to share GPU memory: cause, remedy and report."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mnnvl_lab.errors import Refused, shown


@dataclass(frozen=True, kw_only=True)
class KnownError:
    """One error.

    Attributes:
        pattern: regular expression that its text matches, in any case.
        said: the text, as people see it.
        cause: why it comes.
        remedy: what to do.
        reports: links to where people met it.
    """

    pattern: str
    said: str
    cause: str
    remedy: str
    reports: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.said}\n  cause:   {self.cause}\n  remedy:  {self.remedy}\n  reports: {' '.join(self.reports)}"


GITHUB = "https://github.com/"
KNOWN_ERRORS = (
    KnownError(
        pattern=r"(cuMemCreate|fabric).*(not permitted|\b800\b)|CUDA_ERROR_NOT_PERMITTED",
        said="cuMemCreate: operation not permitted (CUDA_ERROR_NOT_PERMITTED, 800)",
        cause="a fabric handle was asked for and the process may open no IMEX channel; the driver's attribute says "
        "only that GPU and driver support such handles",
        remedy="make /dev/nvidia-caps-imex-channels/channel0 (mknod with the major number of /proc/devices) and give "
        "it to the container; on one HGX host use POSIX file descriptors",
        reports=(
            f"{GITHUB}deepseek-ai/DeepEP/issues/487",
            f"{GITHUB}microsoft/mscclpp/issues/467",
            f"{GITHUB}NVIDIA/nvbandwidth/issues/39",
            f"{GITHUB}MoonshotAI/MoonEP/pull/28",
        ),
    ),
    KnownError(
        pattern=r"cuMemImportFromShareableHandle|import.*(handle|fabric).*(invalid|not permitted)",
        said="cuMemImportFromShareableHandle fails between two containers of one node",
        cause="the two containers see different GPUs, and within one node the import of a fabric handle needs to see "
        "the exporter's GPU",
        remedy="put ranks of one node into one container, or use POSIX file descriptors within the node",
        reports=(f"{GITHUB}kubernetes-sigs/dra-driver-nvidia-gpu/issues/294",),
    ),
    KnownError(
        pattern=r"pidfd_getfd|pidfd_open|SYS_PTRACE|ptrace_scope",
        said="pidfd_getfd(...) failed with errno 1: Operation not permitted",
        cause="FlashInfer up to 0.6.15 took file descriptors out of its peers, which needs the right to trace them",
        remedy="use FlashInfer 0.7.2, which passes them through a socket (SCM_RIGHTS); before it: docker run "
        "--cap-add=SYS_PTRACE",
        reports=(f"{GITHUB}flashinfer-ai/flashinfer/issues/2394", f"{GITHUB}flashinfer-ai/flashinfer/pull/4089"),
    ),
    KnownError(
        pattern=r"SCM_RIGHTS requires all ranks to share the same host|differing hostnames",
        said="[MnnvlMemory] POSIX fd exchange via SCM_RIGHTS requires all ranks to share the same host",
        cause="ranks have different host names: an EP group spans nodes without a fabric cluster, or containers of one "
        "node are named differently",
        remedy="keep EP groups within one node or one NVLink domain (`plan` says which), or give the containers one "
        "host name",
        reports=(f"{GITHUB}vllm-project/vllm/issues/51986",),
    ),
    KnownError(
        pattern=r"\[fd_exchange\] timed out connecting|fd\.sock",
        said="[fd_exchange] timed out connecting to /tmp/cuda_fd_xchg_.../fd.sock",
        cause="the socket lies in another container's temporary directory",
        remedy="share the temporary directory (docker run --volume /tmp:/tmp), or set TMPDIR to a shared one",
        reports=(f"{GITHUB}flashinfer-ai/flashinfer/pull/4089",),
    ),
    KnownError(
        pattern=r"NVLink backends are not supported on EP ranks|no P2P-capable NVLink|not all of its NVLinks are up",
        said="NVLink backends are not supported on EP ranks [...]; see their logs for the reason",
        cause="a rank's GPU has no NVLink, or a link of it is down; on B300 NVML reports 36 links of which 18 exist",
        remedy="look at nvidia-smi nvlink --status; leave a GPU with a dead link out; on B300 take FlashInfer with "
        "pull request 3990",
        reports=(f"{GITHUB}flashinfer-ai/flashinfer/pull/3990",),
    ),
    KnownError(
        pattern=r"MNNVL communicator has \d+ ranks|workspace first dim must equal ep_size|must have epSize elements",
        said="MNNVL communicator has 2 ranks but the EP group has world_size=4",
        cause="the workspace was allocated over another group than the EP group, such as the DP group",
        remedy="hand over the communicator of the EP group (vLLM since pull request 40893)",
        reports=(f"{GITHUB}vllm-project/vllm/pull/40893",),
    ),
    KnownError(
        pattern=r"Not all rank allocating same size",
        said="Not all rank allocating same size",
        cause="ranks computed different sizes: max tokens, hidden size or top_k differ between them",
        remedy="start every rank with the same max_num_tokens and the same environment",
        reports=(f"{GITHUB}NVIDIA/TensorRT-LLM/issues/13319",),
    ),
)


def explain(text: str) -> tuple[KnownError, ...]:
    """The known errors that a text shows.

    Args:
        text: an error's text, or a stretch of a log.

    Raises:
        Refused: no text.
    """
    if not isinstance(text, str) or not text.strip():
        raise Refused(f"text is {shown(text)}: it must be the text of an error; pass what was printed")
    plain = " ".join(text.split())
    return tuple(error for error in KNOWN_ERRORS if re.search(error.pattern, plain, re.IGNORECASE))
