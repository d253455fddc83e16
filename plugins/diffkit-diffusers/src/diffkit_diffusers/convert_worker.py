"""Read one pickled checkpoint in a separate process and write its tensors as safetensors.

This is the only place at which diffkit opens a pickle: with weights_only=True, which builds tensors and plain
containers and calls nothing else. Limits on memory, time, files and processes are set first, and hold even if that
protection fails. `openai` starts this file by its path; it imports nothing of diffkit.

usage: python -I convert_worker.py SOURCE TARGET MEMORY_BYTES
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

MAX_CPU_SECONDS = 600
MAX_OPEN_FILES = 64
EXIT_REFUSED = 3
MAX_NAME_LENGTH = 200


def limit(memory: int) -> None:
    """Limit this process: `memory` more bytes than in use, ten CPU minutes, no child process, files of `memory`
    bytes.
    """
    used = 0
    status = Path("/proc/self/status")
    if status.exists():  # on other systems than Linux the limit includes all data in use
        used = next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmData"))
    for what, value in (
        (resource.RLIMIT_DATA, used + memory),
        (resource.RLIMIT_FSIZE, memory),
        (resource.RLIMIT_CPU, MAX_CPU_SECONDS),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(what, (value, value))


def tensors_of(found: object) -> dict[str, Tensor]:
    """Return the state dict `found`. Raises ValueError unless it holds plain tensors under short names only."""
    if not isinstance(found, dict) or not found:
        raise ValueError("the file holds no state dict")
    for name, value in found.items():
        if not isinstance(name, str) or len(name) > MAX_NAME_LENGTH:
            raise ValueError(f"the name of a tensor is not a text of at most {MAX_NAME_LENGTH} characters")
        if type(value) is not Tensor or value.layout != torch.strided or not value.is_floating_point():
            raise ValueError(f"{name} is not a dense tensor of real numbers")
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def main(source: str, target: str, memory: str) -> int:
    """Convert one checkpoint.

    Args:
        source: path of the pickle.
        target: path of the safetensors file to write.
        memory: additional memory in bytes, as text.

    Returns:
        The exit status: 0 written, 3 refused with the reason on standard error.
    """
    torch.set_num_threads(1)
    limit(int(memory))
    try:
        save_file(tensors_of(torch.load(source, map_location="cpu", weights_only=True)), target)
    except Exception as error:  # noqa: BLE001 - report every error that hostile bytes can cause
        print(f"{type(error).__name__}: {error}".splitlines()[0][:300], file=sys.stderr)
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
