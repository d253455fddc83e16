"""Freed memory of the CPU, kept for the next step.

glibc hands large blocks back to the system as they are freed, and the system clears every page anew when the next step
asks for them: a twelfth of a step of small batches, a third of one of large. The steps of a run ask for the same blocks
again and again, so here they are kept until the process ends; the peak stays what it was.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

import torch

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
