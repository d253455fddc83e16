"""A full disk costs the checkpoint that is being written, and no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("disk_full.py")
# A file system of 1 MB of our own, filled with files until a save fails, then emptied.
TMPFS = """
import sys
from pathlib import Path
import torch
from diffkit.storage.checkpoint import CheckpointStore, SaveFailed
root = Path(sys.argv[1])
store = CheckpointStore(root / "checkpoints", keep=2)
tensors = {"network": {"w": torch.zeros(40_000)}}
for step in (1, 2, 3):
    store.save(step, tensors, {}, {})
(root / "other").write_bytes(bytes(600_000))
for attempt in range(3):
    try:
        store.save(4, tensors, {}, {})
        raise AssertionError("the disk was not full")
    except SaveFailed as error:
        assert "No space left" in error.message, error.message
    assert store.load().step == 3
    assert len(list((root / "checkpoints").iterdir())) == 2
(root / "other").unlink()
store.save(4, tensors, {}, {})
assert store.load().step == 4
print("survived")
"""


def fill(directory: Path, stride: int) -> int:
    command = [sys.executable, str(SCRIPT), str(directory), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_disk_that_is_full_at_some_bytes(tmp_path: Path) -> None:
    assert fill(tmp_path, 64 << 10) >= 18


@pytest.mark.slow
def test_a_disk_that_is_full_at_many_bytes(tmp_path: Path) -> None:
    assert fill(tmp_path, 1 << 10) >= 300


def test_a_real_full_disk(tmp_path: Path) -> None:
    """ENOSPC from a small file system, which an unprivileged process may mount in a name space of its own."""
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(tmp_path)]
    try:
        possible = subprocess.run([*mount, "true"], capture_output=True, timeout=30).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("this machine lets nobody mount a file system of his own")
    command = [*mount, sys.executable, "-c", TMPFS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "survived\n", done.stderr
