"""Shards of a checkpoint: written by any number of processes, read by any other, and refused if they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffkit.errors import CheckpointError
from diffkit.storage.manifest import FileDigest, Manifest, shard_file
from diffkit.storage.tensor_files import read_group, write_tensors

WHOLE = {
    "weight": torch.randn(7, 3, generator=torch.Generator().manual_seed(1)),
    "bias": torch.arange(2.0),  # fewer rows than processes: some shards are empty
    "count": torch.tensor(5),
}
DIGEST = FileDigest(0, "0" * 64)


def share(count: int, rank: int, size: int) -> range:
    """The rows of a process, as torch.chunk divides them."""
    rows = -(-count // size)
    return range(min(rank * rows, count), min((rank + 1) * rows, count))


def write(folder: Path, size: int, tensors: dict[str, Tensor] = WHOLE) -> dict[Path, FileDigest]:
    """The shards of `size` processes; tensors without dimensions lie in the first."""
    files = {}
    for rank in range(size):
        rows = {name: share(len(t), rank, size) for name, t in tensors.items() if t.ndim}
        own = {name: tensors[name][r.start : r.stop] for name, r in rows.items()}
        own |= {name: t for name, t in tensors.items() if not t.ndim and rank == 0}
        path = folder / shard_file("network", rank, size)
        files[path] = write_tensors(path, own)
    return files


@pytest.mark.parametrize("written", range(1, 5))
@pytest.mark.parametrize("read", range(1, 5))
def test_any_number_of_processes_reads_what_any_number_wrote(tmp_path: Path, written: int, read: int) -> None:
    files = write(tmp_path, written)
    for rank in range(read):
        found = read_group(files, WHOLE, lambda name, shape, rank=rank: share(shape[0], rank, read) if shape else None)
        for name, tensor in WHOLE.items():
            rows = share(len(tensor), rank, read) if tensor.ndim else None
            assert torch.equal(found[name], tensor if rows is None else tensor[rows.start : rows.stop])


def test_shapes_are_those_of_the_whole_tensors(tmp_path: Path) -> None:
    files = write(tmp_path, 3)
    with pytest.raises(CheckpointError, match=r"'weight' has shape \(7, 3\), but the recipe has \(8, 3\)"):
        read_group(files, {**WHOLE, "weight": torch.zeros(8, 3)})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"weight": torch.zeros(3, 4), "bias": torch.zeros(1)}, "'weight' differs between the shards"),
        ({"weight": torch.zeros(3, 3).double(), "bias": torch.zeros(1)}, "'weight' differs between the shards"),
        ({"weight": torch.zeros(3, 3), "bias": torch.zeros(1), "more": torch.zeros(1)}, "has the tensor 'more'"),
    ],
)
def test_shards_that_do_not_fit_are_refused(tmp_path: Path, second: dict[str, Tensor], message: str) -> None:
    files = write(tmp_path, 2)
    path = list(files)[1]
    path.unlink()
    files[path] = write_tensors(path, second)
    with pytest.raises(CheckpointError, match=message):
        read_group(files, None)


def test_a_tensor_in_some_shards_only_is_refused(tmp_path: Path) -> None:
    files = write(tmp_path, 3)
    path = list(files)[2]
    path.unlink()
    files[path] = write_tensors(path, {"bias": torch.zeros(0)})
    with pytest.raises(CheckpointError, match="'weight' differs between the shards"):
        read_group(files, None)


def test_a_manifest_lists_all_shards() -> None:
    names = [shard_file("network", rank, 3) for rank in range(3)]
    whole = Manifest(1, dict.fromkeys([*names, "optimizer.safetensors"], DIGEST))
    assert whole.groups == {"network": tuple(names), "optimizer": ("optimizer.safetensors",)}
    for wrong in (names[:2], names[1:], [*names, "network.safetensors"]):
        with pytest.raises(CheckpointError, match="does not list all shards of network"):
            _ = Manifest(1, dict.fromkeys(wrong, DIGEST)).groups
