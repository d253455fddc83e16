"""Reads one pickled checkpoint in a process of its own and writes its tensors as safetensors.

This is the one place where diffkit opens a pickle: with weights_only=True, which builds tensors and plain containers
and calls nothing else, and after limits on memory, time, files and processes are set that hold even if that fails.
It is started by `convert`, by its path, and imports nothing of diffkit.

usage: python -I convert_worker.py SOURCE TARGET MEMORY_BYTES
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SECONDS = 600
FILES = 64
REFUSED = 3
LONGEST_NAME = 200


def limit(memory: int) -> None:
    """At most `memory` bytes more than are in use, ten minutes of computing, no process, no file larger than that."""
    used = 0
    status = Path("/proc/self/status")
    if status.exists():  # elsewhere than on Linux the limit is on all data
        used = next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmData"))
    for what, value in (
        (resource.RLIMIT_DATA, used + memory),
        (resource.RLIMIT_FSIZE, memory),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(what, (value, value))


def tensors_of(found: object) -> dict[str, Tensor]:
    """The state dict that was read. Raises ValueError for anything but plain tensors under short names."""
    if not isinstance(found, dict) or not found:
        raise ValueError("it holds no state dict")
    for name, value in found.items():
        if not isinstance(name, str) or len(name) > LONGEST_NAME:
            raise ValueError("a name in it is no short text")
        if type(value) is not Tensor or value.layout != torch.strided or not value.is_floating_point():
            raise ValueError(f"{name} is no plain tensor of real numbers")
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def main(source: str, target: str, memory: str) -> int:
    """The exit status: 0 written, 3 refused with the reason on standard error."""
    torch.set_num_threads(1)
    limit(int(memory))
    try:
        save_file(tensors_of(torch.load(source, map_location="cpu", weights_only=True)), target)
    except Exception as error:  # noqa: BLE001 - whatever hostile bytes cause ends here, in one line
        print(f"{type(error).__name__}: {error}".splitlines()[0][:300], file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
