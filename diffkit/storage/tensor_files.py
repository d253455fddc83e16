"""One group of tensors to and from one safetensors file, a tensor at a time and without a second copy in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from . import atomic
from .atomic import fault
from .manifest import Span, Stamp, check_digest, check_size, encode_header, read_header

Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, Tensor | tuple[int, ...]]

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def write_tensors(path: Path, tensors: Tensors) -> Stamp:
    """Write a new file with `tensors` (any shape, any device; what shares memory is written twice) and sync it.

    Raises: ValueError for a type that the format does not have, OSError as the disk does.
    """
    described = {name: (_type_name(name, tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
    header, order = encode_header(described)
    digest, length = hashlib.sha256(header), len(header)
    with open(path, "xb") as stream:
        stream.write(header)
        for name in order:
            data = _raw(tensors[name].detach().cpu().contiguous())
            stream.write(data)
            digest.update(data)
            length += len(data)
        atomic.sync(stream)
    return Stamp(length, digest.hexdigest())


def read_tensors(path: Path, stamp: Stamp, expected: Shapes | None, device: torch.device | str) -> dict[str, Tensor]:
    """The tensors of a file; the bytes that are hashed are the bytes that are used, so nothing can change in between.

    `expected` maps every name to a tensor (shape and type must agree) or to a shape, and is compared with the header
    before anything is read. Raises: CheckpointError that names the first fault.
    """
    name = path.name
    with atomic.open_regular(path) as stream:
        check_size(stream, name, stamp)
        header, spans = read_header(stream, name)
        if expected is not None:
            _check_shapes(name, spans, expected)
        digest = hashlib.sha256(header)
        tensors = {}
        for key, span in spans.items():
            buffer = _allocate(span, name)
            data = _raw(buffer)
            if stream.readinto(data) != len(data):
                raise fault(f"{name} was cut short while it was read")
            digest.update(data)
            if span.dtype == "BOOL" and bool((buffer > 1).any()):
                raise fault(f"{name}: tensor {key[:80]!r} is boolean and holds other bytes than 0 and 1")
            tensors[key] = buffer.view(_TYPES[span.dtype]).reshape(span.shape)
    check_digest(digest.hexdigest(), name, stamp)
    return {key: tensor.to(device) for key, tensor in tensors.items()}


def _type_name(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in _NAMES:
        raise ValueError(f"tensor {name!r} has type {tensor.dtype}, which a checkpoint cannot hold")
    return _NAMES[tensor.dtype]


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _allocate(span: Span, name: str) -> Tensor:
    try:
        return torch.empty(span.end - span.begin, dtype=torch.uint8)
    except RuntimeError as error:
        raise fault(f"{name} holds a tensor of {span.end - span.begin} bytes, which memory has no room for") from error


def _check_shapes(name: str, spans: Mapping[str, Span], expected: Shapes) -> None:
    if missing := expected.keys() - spans.keys():
        raise fault(f"{name} has no tensor {min(missing)!r}, which the recipe needs")
    if extra := spans.keys() - expected.keys():
        raise fault(f"{name} has the tensor {min(extra)[:80]!r}, which the recipe does not know")
    for key, span in spans.items():
        want = expected[key]
        shape = tuple(want.shape) if isinstance(want, Tensor) else tuple(want)
        if span.shape != shape:
            raise fault(f"{name}: tensor {key!r} has shape {span.shape} where the recipe has {shape}")
        if isinstance(want, Tensor) and _TYPES[span.dtype] != want.dtype:
            raise fault(f"{name}: tensor {key!r} has type {span.dtype} where the recipe has {want.dtype}")
