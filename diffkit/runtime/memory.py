"""Memory: the peak that was used, one error for every way in which it can run out, and a setting of malloc.

Torch is imported inside functions, because the command line program starts without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..errors import ResourceError, is_out_of_memory

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of mallopt(3)

HINT = (
    "raise train.accumulate (the same batch in smaller parts), set train.precision: bf16, or make the network smaller"
)


def peak_memory(device: torch.device) -> int:
    """Return the peak in bytes: of allocations on a CUDA device, else of the resident set of this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def enough_memory(estimate: Callable[[], str] | None = None, what: str = "training", fix: str = HINT) -> Iterator[None]:
    """Convert every error of exhausted memory, and of a data worker that the kernel killed, to a `ResourceError`.

    Args:
        estimate: returns a sentence on how much memory the run needs, a note of the error. Default: none.
        what: the activity inside the context, for the message. Default: "training".
        fix: the advice in the message.

    Returns:
        A context manager.

    Raises:
        ResourceError: memory ran out (DK401) or a worker was killed (DK402). Other errors pass unchanged.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if killed := worker_killed(error):
            raise killed from error
        if not is_out_of_memory(error):
            raise
        notes = [estimate()] if estimate else []
        notes.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise ResourceError(f"memory ran out during {what}", code="DK401", fix=fix, notes=notes) from error


def worker_killed(error: BaseException) -> ResourceError | None:
    """Return the `ResourceError` for the error that torch raises if a worker of a DataLoader dies, else None."""
    if "DataLoader worker" not in str(error):
        return None
    message = f"a data worker was killed, probably by the kernel because memory ran out ({error})"
    fix = "use fewer workers (train.workers), or a machine with more memory"
    return ResourceError(message, code="DK402", fix=fix)


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for reuse, which saves the page faults of large tensors on the CPU.

    This changes the whole process, so only programs call it, never a library function. It does nothing if the C
    library is not glibc or if an environment variable tunes malloc already.
    """
    tuned = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not tuned:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_MAX, 0)
