"""The header of a safetensors file, read and written by hand so that nothing is taken on trust.

Layout: 8 bytes n (little endian), n bytes of JSON {name: {dtype, shape, data_offsets}}, then the data without holes.
Source: the format description of safetensors; the library reads what is written here, and the reverse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader

from .files import fault, parse_object, size_of

WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAX_HEADER = 8 << 20
MAX_RANK = 16


@dataclass(frozen=True)
class Span:
    """One tensor of a file: its type, its shape, and the bytes [begin, end) of the data that it occupies."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def encode_header(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> tuple[bytes, list[str]]:
    """The header of a file with these {name: (dtype, shape)}, and the order in which the data must follow.

    Wide types come first and the header is padded to 8 bytes, so that every tensor is aligned in the file.
    """
    order = sorted(tensors, key=lambda name: (-WIDTH[tensors[name][0]], name))
    entries, end = {}, 0
    for name in order:
        dtype, shape = tensors[name]
        begin, end = end, end + WIDTH[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"{len(tensors)} tensors need a header of {len(text)} bytes; at most {MAX_HEADER} are allowed")
    return len(text).to_bytes(8, "little") + text, order


def read_header(stream: BufferedReader, what: str) -> tuple[bytes, dict[str, Span]]:
    """The header bytes of a file and its tensors in the order of their data; the stream is left at the data.

    A fault (CheckpointError) unless names are unique, types known, spans as long as shape and type say, and the
    spans cover the rest of the file exactly, without holes or overlap.
    """
    size = size_of(stream)
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise fault(f"{what} is shorter than its header says, or is no safetensors file")
    if length > MAX_HEADER:
        raise fault(f"{what} has a header of {length} bytes, more than the {MAX_HEADER} allowed")
    text = stream.read(length)
    entries = parse_object(text, f"the header of {what}")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise fault(f"the header of {what} has metadata that is not text")
    spans = {name: _span(name, entry, what) for name, entry in entries.items()}
    ordered = sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end))
    end = 0
    for name, span in ordered:
        if span.begin != end:
            raise fault(f"{what}: tensor {name[:80]!r} starts at byte {span.begin} of the data, not at {end}")
        end = span.end
    if end != size - 8 - length:
        raise fault(f"{what} has {size - 8 - length} bytes of data where its header describes {end}")
    return prefix + text, dict(ordered)


def _span(name: str, entry: object, what: str) -> Span:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fault(f"{what}: tensor {name[:80]!r} lacks dtype, shape or data_offsets, or has more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTH:
        raise fault(f"{what}: tensor {name[:80]!r} has the unknown type {str(dtype)[:40]!r}")
    if not _naturals(shape) or len(shape) > MAX_RANK:
        raise fault(f"{what}: tensor {name[:80]!r} has an impossible shape")
    if not _naturals(offsets) or len(offsets) != 2:
        raise fault(f"{what}: tensor {name[:80]!r} has impossible offsets")
    begin, end = offsets
    if end - begin != WIDTH[dtype] * math.prod(shape):
        raise fault(f"{what}: tensor {name[:80]!r} of type {dtype} and shape {shape} cannot take {end - begin} bytes")
    return Span(dtype, tuple(shape), begin, end)


def _naturals(value: object) -> bool:
    """Whether `value` is a list of integers in [0, 2^63); True and False are not numbers here."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
