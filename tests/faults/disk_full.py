"""Save with a disk that takes only so many bytes of each file, at many limits, and see that nothing is lost.

Usage: python disk_full.py DIRECTORY STRIDE   prints the number of limits that were tried; fails with a traceback.
RLIMIT_FSIZE stands for the full disk: the kernel takes what fits and refuses the rest.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffkit.storage.checkpoint import CheckpointStore, SaveFailed


@contextmanager
def limited(size: int) -> Iterator[None]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def content(value: int, large: bool) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any], dict[str, Any]]:
    """Large tensors, or a large state: so that the limit strikes in a file of either kind."""
    network = torch.full((50_000 if large else 10,), float(value))
    state = {"value": value, "history": [] if large else [1 / i for i in range(1, 9000)]}
    return {"network": {"w": network}}, state, {"notes": "" if large else "x" * 250_000}


def main() -> None:
    root, stride = Path(sys.argv[1]), int(sys.argv[2])
    tried = 0
    for large in (True, False):
        directory = root / str(large)
        store = CheckpointStore(directory, keep=2)
        for step in (1, 2):
            store.save(step, *content(step, large))
        longest = max(path.stat().st_size for path in (directory / "step-00000002").iterdir())
        for size in [*range(0, longest, stride), 1, 7, 8, 9, 100, longest - 1]:
            tried += 1
            failed = False
            try:
                with limited(size):
                    store.save(3, *content(3, large))
            except SaveFailed:
                failed = True
            assert failed, f"a limit of {size} bytes was not met"
            left = sorted(path.name for path in directory.iterdir())
            assert left == ["step-00000001", "step-00000002"], left
            loaded = CheckpointStore(directory).load()
            assert loaded is not None
            assert loaded.state["value"] == 2
        store.save(3, *content(3, large))
        loaded = store.load()
        assert loaded is not None
        assert torch.equal(loaded.tensors["network"]["w"], content(3, large)[0]["network"]["w"])
    print(tried)


if __name__ == "__main__":
    main()
