"""Memory: how much was used, and what to do when there is not enough."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator

import torch

from ..errors import ResourceError

_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")

HINT = (
    "raise train.accumulate (the same batch in smaller parts), set train.precision: bf16, or make the network smaller"
)


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak so far: allocated on a CUDA device, else the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def enough_memory(estimate: Callable[[], str], what: str = "training", fix: str = HINT) -> Iterator[None]:
    """Turn the many errors of exhausted memory into one `ResourceError` that names the knobs; `estimate()` says how
    much the run needs, `what` it was doing. A worker that the kernel killed is one of them, whenever it is noticed."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if killed := worker_killed(error):
            raise killed from error
        text = str(error).lower()
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(s in text for s in _SIGNS):
            raise
        raise ResourceError(
            f"memory ran out while {what}",
            code="DK401",
            fix=fix,
            notes=[estimate(), str(error).splitlines()[0] if str(error) else type(error).__name__],
        ) from error


def worker_killed(error: BaseException) -> ResourceError | None:
    """The answer to what torch raises wherever the main thread is at the moment when a DataLoader's worker dies."""
    if "DataLoader worker" not in str(error):
        return None
    return ResourceError(
        f"a worker that reads the data was killed, by the kernel when memory runs out ({error})",
        code="DK402",
        fix="use fewer workers (train.workers), or a machine with more memory",
    )


TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Names of mallopt: how much unused memory at the top is handed back; how many blocks live in mappings of their own."""


def keep_memory(device: torch.device) -> None:
    """Let this process keep what it frees, where `device` is the CPU; an environment that tunes malloc is left alone.

    Does nothing where the C library is not glibc.
    """
    if device.type == "cpu" and not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        _keep()


@functools.cache
def _keep() -> None:
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(MMAP_MAX, 0)
