"""Groups of tensors in safetensors files: one file, or one shard for each process that held a part of the tensors.

A tensor in each shard of a group is divided by its rows (the first dimension), in the order of the shards. A tensor in
the first shard only is whole. So any number of processes can read a group, and each keeps the rows it needs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from . import atomic
from .atomic import damaged_file
from .manifest import FileDigest, TensorInfo, read_header

Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, Tensor | tuple[int, ...]]
Rows = Callable[[str, Sequence[int]], range | None]

_FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_INTEGERS = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"}
_TYPES = {**_FLOATS, **_INTEGERS, torch.bool: "BOOL"}


def read_group(
    files: Mapping[Path, FileDigest], expected: Shapes | None, rows: Rows | None = None
) -> dict[str, Tensor]:
    """Read a group of tensors. The tensors are built from the bytes that were hashed, which needs memory for one extra
    copy of the largest file.

    Shapes and types are compared with `expected` before the data is read, which bounds the memory.

    Args:
        files: the shards in order, or one file, with their digests.
        expected: the tensors or shapes that the group must have; None for any.
        rows: returns the rows of a tensor to keep, by name and whole shape; None means all. Default: all.

    Returns:
        The tensors by name.

    Raises:
        CheckpointError: names the first damaged file.
    """
    headers = []
    for path, digest in files.items():
        with atomic.open_regular(path) as stream:
            digest.require_size(stream, path.name)
            headers.append(read_header(stream, path)[1])
    names = [path.name for path in files]
    whole = _joined(names, headers)
    _compare(names[0], whole, expected)
    parts: dict[str, list[Tensor]] = {name: [] for name in whole}
    for number, (path, digest) in enumerate(files.items()):
        for name, tensor in _read_file(path, digest).items():
            wanted = rows(name, whole[name].shape) if rows is not None else None
            if wanted is not None:
                begin = sum(header[name].shape[0] for header in headers[:number])
                first, last = (min(max(edge - begin, 0), len(tensor)) for edge in (wanted.start, wanted.stop))
                tensor = tensor[first:last].clone()  # a view would keep the whole file in memory
            parts[name].append(tensor)
    return {name: found[0] if len(found) == 1 else torch.cat(found) for name, found in parts.items()}


def _joined(names: Sequence[str], headers: Sequence[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """Return type and shape of the whole tensors of a group. Raises CheckpointError if its shards do not fit."""
    whole = dict(headers[0])
    for name, info in headers[0].items():
        found = [header[name] for header in headers if name in header]
        if len(found) not in (1, len(headers)) or any(
            (a.dtype, a.shape[1:], bool(a.shape)) != (b.dtype, b.shape[1:], bool(b.shape)) for a, b in pairwise(found)
        ):
            raise damaged_file(f"tensor {name[:80]!r} differs between the shards of {names[0]}")
        if len(found) > 1:
            whole[name] = TensorInfo(info.dtype, (sum(part.shape[0] for part in found), *info.shape[1:]), info.begin)
    for file, header in zip(names, headers, strict=True):
        if extra := header.keys() - whole.keys():
            raise damaged_file(f"{file} has the tensor {min(extra)[:80]!r}, which {names[0]} does not have")
    return whole


def _read_file(path: Path, digest: FileDigest) -> dict[str, Tensor]:
    """Read the tensors of one file, and verify every byte."""
    with atomic.open_regular(path) as stream:
        digest.require_size(stream, path.name)
        try:
            data = stream.read(digest.bytes)
            digest.require_content(hashlib.sha256(data).hexdigest(), path.name)
            tensors: dict[str, Tensor] = load(data)
        except (MemoryError, SafetensorError) as error:
            raise damaged_file(f"{path.name} cannot be loaded ({type(error).__name__})") from error
    for name, tensor in tensors.items():
        if tensor.dtype is torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise damaged_file(f"{path.name}: boolean tensor {name[:80]!r} contains bytes other than 0 and 1")
    return tensors


def _compare(file: str, found: Mapping[str, TensorInfo], expected: Shapes | None) -> None:
    """Raise CheckpointError unless all types are known, and names, shapes and types are the expected ones."""
    for name, info in found.items():
        if info.dtype not in _TYPES.values():
            raise damaged_file(f"{file}: tensor {name[:80]!r} has the unsupported type {info.dtype}")
    if expected is None:
        return
    if missing := expected.keys() - found.keys():
        raise damaged_file(f"{file} has no tensor {min(missing)!r}, which the recipe requires")
    if extra := found.keys() - expected.keys():
        raise damaged_file(f"{file} has the tensor {min(extra)[:80]!r}, which the recipe does not have")
    for name, want in expected.items():
        info = found[name]
        shape = tuple(want.shape) if isinstance(want, Tensor) else tuple(want)
        if info.shape != shape:
            raise damaged_file(f"{file}: tensor {name!r} has shape {info.shape}, but the recipe has {shape}")
        if isinstance(want, Tensor) and info.dtype != _TYPES.get(want.dtype):
            raise damaged_file(f"{file}: tensor {name!r} has type {info.dtype}, but the recipe has {want.dtype}")


@dataclass(frozen=True)
class Parts:
    """Tensors of one process: those that are `whole`, and the rows of those that are `sharded`."""

    whole: dict[str, Tensor]
    sharded: dict[str, Tensor]


def split_shards(tensors: Mapping[str, Any]) -> Parts:
    """Divide tensors into whole ones and shards. A DTensor that is divided in another way is gathered."""
    whole, sharded = {}, {}
    for name, tensor in tensors.items():
        if not hasattr(tensor, "to_local"):
            whole[name] = tensor
        elif all(placement.is_shard(0) for placement in tensor.placements):
            sharded[name] = tensor.detach().to_local()
        else:
            whole[name] = tensor.detach().full_tensor()
    return Parts(whole, sharded)


def write_tensors(path: Path, tensors: Tensors) -> FileDigest:
    """Write and sync a safetensors file. The digest is computed from the tensors in memory, not from the file."""
    separate = _without_shared_memory(tensors)
    try:
        save_file(separate, path)
    except SafetensorError as error:  # such as a full disk
        raise OSError(str(error)) from error
    with atomic.open_regular(path) as stream:
        os.fchmod(stream.fileno(), path.parent.stat().st_mode & 0o666)  # the library ignores the umask
        atomic.sync(stream)
        header, found = read_header(stream, path)
    sha256 = hashlib.sha256(header)
    for name in sorted(found, key=lambda name: found[name].begin):
        sha256.update(separate[name].reshape(-1).view(torch.uint8).numpy().data)
    return FileDigest(len(header) + sum(tensor.nbytes for tensor in separate.values()), sha256.hexdigest())


def _without_shared_memory(tensors: Tensors) -> dict[str, Tensor]:
    """Return contiguous CPU tensors; one that shares memory with another is copied, as safetensors requires."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise ValueError(f"tensor {name!r} has type {tensor.dtype}, which a checkpoint does not support")
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return separate
