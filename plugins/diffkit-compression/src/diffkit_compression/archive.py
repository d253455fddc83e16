"""The file format of archives: a magic number, a JSON header of at most 1 kB, and sections of bytes.

    8 bytes     magic
    2 bytes     length of the header, little-endian
    32 bytes    sha256 of everything before and of the header
    header      JSON: sizes, model, and the length and sha256 of each section
    sections    "names", zlib-compressed JSON, and "stream", the coded examples

Every byte is covered by a hash that is checked before anything else is read, nothing is unpickled, and all sizes are
limited before memory is allocated.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from diffkit import DataError

from .stack import Words

MAGIC = b"\x89DKZ\r\n\x1a\n"
FORMAT = 3
"""Version of the format. Before it, lossy streams had other moves or candidates; lossless ones were the same."""
MAX_HEADER, MAX_NAMES, MAX_NUMBERS, MAX_FILE = 1024, 1 << 26, 1 << 31, 1 << 31
"""Bytes of the header and of the names, numbers of all examples together, and bytes of a file."""
Positive = Annotated[int, Field(ge=1, le=MAX_NUMBERS)]
Count = Annotated[int, Field(ge=0, le=MAX_NUMBERS)]
Hash = Annotated[str, Field(pattern="^[A-Za-z0-9+/]{43}$")]


class Identity(BaseModel):
    """What must be equal to decode: hashes of model, weights and probe, and the machine that computes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Hash
    weights: Hash
    device: Annotated[str, Field(max_length=64)]
    cpu: Annotated[str, Field(max_length=16)]
    threads: Positive
    torch: Annotated[str, Field(max_length=32)]
    probe: Hash


class Section(BaseModel):
    """Length and hash of a section."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: Annotated[int, Field(ge=0, le=MAX_FILE)]
    sha256: Hash


class Header(BaseModel):
    """The header of an archive.

    format     version of the format
    mode       `lossless`, or `lossy`
    count      number of examples
    shape      shape of an example: (C, *S)
    bins       number of values
    layers     number of layers of the chain
    average    weights of the run: "ema", "raw", or the name of an average
    errors     differences of the errors of the model, see `Codebook.measure`
    batches    [size, times] of the batches of a lossless stream
    kept       words of the ground below a lossless stream
    moves      moves of a lossy stream
    pixels     hash of the decoded values
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Positive = 1
    mode: Literal["lossless", "lossy"]
    count: Positive
    shape: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=8)]
    bins: Positive
    layers: Positive
    average: Annotated[str, Field(max_length=64)]
    errors: Annotated[tuple[int, ...], Field(min_length=1, max_length=64)]
    batches: tuple[tuple[Positive, Positive], ...] = ()
    kept: Count = 0
    moves: Count = 0
    identity: Identity
    pixels: Hash
    names: Section
    stream: Section

    @property
    def bits(self) -> int:
        """Bits of the stream."""
        return 8 * self.stream.bytes


class Entry(BaseModel):
    """A file in an archive: a picture, or an array with its shape and type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    shape: tuple[Positive, ...] = ()
    dtype: Literal["", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8"] = ""

    @property
    def count(self) -> int:
        """Number of examples."""
        return self.shape[0] if self.shape else 1


def damaged(reason: str) -> DataError:
    """Return the error for a file that is not a whole archive."""
    fix = "copy the archive again; no part of it can be decoded"
    return DataError(f"the archive is damaged: {reason}", code="DK351", fix=fix)


def pack(header: dict[str, Any], entries: list[Entry], words: Words) -> bytes:
    """Build the content of an archive.

    Args:
        header: The fields of `Header` without `format`, `names` and `stream`.
        entries: The files, in order.
        words: The stream.

    Returns:
        The bytes.

    Raises:
        DataError: DK350, the header would be larger than 1 kB.
    """
    listed = [[e.name, *([list(e.shape), e.dtype] if e.shape else [])] for e in entries]
    names = zlib.compress(json.dumps(listed, separators=(",", ":")).encode(), 9)
    stream = words.astype("<u4").tobytes()
    sections = {"names": names, "stream": stream}
    described = {name: {"bytes": len(data), "sha256": hash_of(data)} for name, data in sections.items()}
    full = Header.model_validate({**header, **described, "format": FORMAT})
    text = json.dumps(full.model_dump(mode="json", exclude_defaults=True), separators=(",", ":")).encode()
    if len(text) > MAX_HEADER:
        raise DataError(
            f"the header of the archive has {len(text)} bytes, more than {MAX_HEADER}",
            code="DK350",
            fix="shorten the name of the weights, or compress fewer examples at a time",
        )
    start = MAGIC + len(text).to_bytes(2, "little")
    return start + hashlib.sha256(start + text).digest() + text + names + stream


def unpack(data: bytes) -> tuple[Header, list[Entry], Words]:
    """Read the content of an archive. Raises DataError DK351 unless every byte is as it was written."""
    if data[: len(MAGIC)] != MAGIC:
        raise DataError("the file is not an archive of diffkit", code="DK351", fix="name a .dkz file")
    size, first = int.from_bytes(data[8:10], "little"), 10 + 32
    text = data[first : first + size]
    if size > MAX_HEADER or hashlib.sha256(data[:10] + text).digest() != data[10:first]:
        raise damaged("its header has changed, or is cut off")
    header = _header(text)
    names = data[first + size : first + size + header.names.bytes]
    stream = data[first + size + header.names.bytes :]
    for name, section, content in (("names", header.names, names), ("stream", header.stream, stream)):
        if len(content) != section.bytes:
            raise damaged(f"its section {name} has {len(content)} bytes, not {section.bytes}")
        if hash_of(content) != section.sha256:
            raise damaged(f"the content of its section {name} has changed (sha256)")
    if header.count * math.prod(header.shape) > MAX_NUMBERS or len(stream) % 4:
        raise damaged(f"its examples have more than {MAX_NUMBERS} numbers, or its stream ends within a word")
    entries = _entries(names)
    lossless = header.mode == "lossless"
    if sum(e.count for e in entries) != header.count or (
        lossless and sum(size * times for size, times in header.batches) != header.count
    ):
        raise damaged("its counts of examples differ")
    return header, entries, np.frombuffer(stream, "<u4").astype(np.uint32)


def read_file(path: Path) -> bytes:
    """Read an archive file. Raises DataError DK351 if it is too large or no regular file."""
    if not path.is_file() or path.stat().st_size > MAX_FILE:
        raise DataError(f"{path} is not a file of at most {MAX_FILE >> 30} GiB", code="DK351", fix="name a .dkz file")
    return path.read_bytes()


def hash_of(data: bytes) -> str:
    """Return the sha256 in base64, without its padding: 43 characters."""
    return text_of(hashlib.sha256(data).digest())


def text_of(digest: bytes) -> str:
    """Write a digest in base64, without its padding."""
    return base64.b64encode(digest).decode().rstrip("=")


def _header(text: bytes) -> Header:
    try:
        fields = json.loads(text)
        version, lossless = fields.get("format", 1), fields.get("mode") == "lossless"
        header = Header.model_validate(fields) if version == FORMAT or (version in (1, 2) and lossless) else None
    except (ValueError, AttributeError, RecursionError) as error:
        raise damaged("its header is not valid") from error
    if header is None:
        raise DataError(
            f"the archive has format {version}, and this version decodes format {FORMAT}",
            code="DK352",
            fix="decompress with the version of diffkit-compression that made it",
        )
    return header


def _entries(names: bytes) -> list[Entry]:
    reader = zlib.decompressobj()
    try:
        listed = json.loads(reader.decompress(names, MAX_NAMES))
        rows = [dict(zip(("name", "shape", "dtype"), row, strict=False)) for row in listed]
        entries = [Entry.model_validate(row) for row in rows]
    except (zlib.error, ValueError, TypeError, RecursionError) as error:
        raise damaged("its names cannot be read") from error
    paths = [PurePosixPath(e.name) for e in entries]
    unsafe = [p for p in paths if p.is_absolute() or ".." in p.parts or "\\" in str(p) or not str(p).isprintable()]
    if unsafe or len(set(paths)) != len(paths):
        raise damaged("a name leaves the folder, or appears twice")
    return entries
