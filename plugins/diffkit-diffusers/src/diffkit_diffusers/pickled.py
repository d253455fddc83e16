"""Pickled weights (.pt, .bin), read by a separate process that can build tensors only."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from diffkit import UsageError

WORKER = Path(__file__).with_name("convert_worker.py")
MAX_FILE_BYTES = 8 << 30
EXTRA_MEMORY_BYTES = 256 << 20
MAX_SECONDS = 1200.0
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")


def read_pickled(checkpoint: Path | str, *, max_bytes: int = MAX_FILE_BYTES) -> dict[str, Tensor]:
    """Read the tensors of a pickle by `convert_worker`, in a process limited to three times its size plus 256 MiB.

    Raises UsageError DK082 if the file is larger than `max_bytes`, or holds anything but tensors.
    """
    source = Path(checkpoint)
    if not source.is_file():
        raise _refused(source, "the file does not exist")
    size = source.stat().st_size
    if size > max_bytes:
        raise _refused(source, f"the file has {size} bytes, more than the {max_bytes} allowed")
    with tempfile.TemporaryDirectory(prefix="diffkit-convert-") as folder:
        target = Path(folder) / "weights.safetensors"
        command = [
            sys.executable,
            "-I",
            str(WORKER),
            str(source.resolve()),
            str(target),
            str(3 * size + EXTRA_MEMORY_BYTES),
        ]
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ} | {
            "OMP_NUM_THREADS": "1"
        }
        try:
            done = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, timeout=MAX_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise _refused(source, f"reading took more than {MAX_SECONDS:.0f} seconds") from error
        if done.returncode or not target.is_file():
            lines = done.stderr[-4096:].decode("utf-8", "replace").strip().splitlines()
            reason = "".join(c for c in lines[-1] if c.isprintable())[:300] if lines else ""
            raise _refused(source, reason or f"the reading process ended with status {done.returncode}")
        return load_file(target)


def _refused(source: Path, reason: str) -> UsageError:
    return UsageError(
        f"{source} cannot be converted: {reason}", code="DK082", fix="save a state dict that contains only tensors"
    )
