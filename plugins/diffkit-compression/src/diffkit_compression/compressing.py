"""Compress examples with a run, and decompress them: what the commands do, as functions."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from diffkit import DataError, Run, UsageError

from .archive import Entry, Header, Identity, damaged, hash_of, pack, unpack
from .bits_back import BitsBack, Coded, Progress
from .model import Codebook, open_codebook
from .relative import Relative
from .stack import UnderflowError

LAYERS = 100
FIXES = {
    "device": "choose the same --device",
    "cpu": "use a machine with the same instructions, or set ATEN_CPU_CAPABILITY to a common one for both commands",
    "threads": "set OMP_NUM_THREADS to the number of threads of the archive",
    "model": "decompress with the run that made the archive",
    "weights": "decompress with the run as it was then: further training changes its weights",
    "probe": "use the same versions of torch and its libraries, and the same kind of processor",
}
"""How to repair what differs. The machine is first: its rounding changes the levels, which are part of the model."""


def compress(
    run: Run,
    entries: Sequence[Entry],
    values: Tensor,
    *,
    bits: float | None = None,
    lossless: bool | None = None,
    layers: int = LAYERS,
    weights: str = "ema",
    on_progress: Progress = lambda done, count: None,
) -> bytes:
    """Compress examples into an archive.

    Args:
        run: The run whose model compresses.
        entries: The files of the examples, from `read_files` or `read_part`.
        values: The examples: (N, C, *S) whole numbers.
        bits: The most bits per example of a lossy archive; default as many as the model can use.
        lossless: Whether every value is kept; by default True for several examples without `bits`.
        layers: Layers of the chain: more of them take fewer bits and more time; default 100.
        weights: "ema", "raw" or the name of an average; default "ema".
        on_progress: Called with the numbers of examples, or of moves of a lossy archive, that are done, and of all.

    Returns:
        The content of the archive.

    Raises:
        UsageError: DK350, the run cannot compress this data, or `bits` and `lossless` are both given.
    """
    if lossless and bits is not None:
        raise UsageError("a lossless archive has no number of bits", code="DK350", fix="pass --bits or --lossless")
    lossless = bits is None and len(values) > 1 if lossless is None else lossless
    book = open_codebook(run, layers, weights)
    errors = book.measure(values)
    header: dict[str, Any] = {
        "mode": "lossless" if lossless else "lossy",
        "count": len(values),
        "shape": book.spec.shape,
        "bins": book.bins,
        "layers": layers,
        "average": weights,
        "errors": [errors[0], *np.diff(errors).tolist()],
        "identity": book.identity | {"probe": book.probe()},
    }
    if lossless:
        coded = _bits_back(book, errors).encode(values, on_progress)
        header |= {"batches": [(k, len(list(g))) for k, g in itertools.groupby(coded.batches)], "kept": coded.kept}
        decoded, words = values, coded.words
        raw = math.log2(book.bins) * values.numel()
        if 32 * len(words) > raw:
            warnings.warn(
                f"the archive of {len(values)} examples takes {32 * len(words)} bits, more than the {raw:.0f} of raw "
                "values: the first example needs bits that are not recovered; compress more at a time",
                stacklevel=2,
            )
    else:
        coder = _relative(book, errors)
        x0 = 2.0 * values.double() / (book.bins - 1) - 1.0
        sent = coder.send(x0, bits=bits or math.inf, on_progress=on_progress)
        decoded = run.assembly.data.to_storage(coder.receive(sent.words, len(values), sent.moves)).long()
        header["moves"], words = sent.moves, sent.words
    return pack(header | {"pixels": _hash_of(decoded)}, list(entries), words)


def decompress(
    run: Run, data: bytes, *, bits: float | None = None, on_progress: Progress = lambda done, count: None
) -> tuple[list[Entry], Tensor]:
    """Decompress an archive.

    Args:
        run: The run that made it.
        data: The content of the archive.
        bits: The most bits per example to decode of a lossy archive; default all.
        on_progress: Called with the numbers of examples, or of moves of a lossy archive, that are done, and of all.

    Returns:
        The files, and their examples: (N, C, *S) int64.

    Raises:
        DataError: DK351, the archive is damaged; DK352, something differs from when it was made.
        UsageError: DK350, `bits` of a lossless archive.
    """
    header, entries, words = unpack(data)
    if bits is not None and header.mode == "lossless":
        raise UsageError("a lossless archive is decoded as a whole", code="DK350", fix="leave out --bits")
    book = open_codebook(run, header.layers, header.average)
    _require_same(book, header)
    errors = np.cumsum(header.errors).tolist()
    if header.mode == "lossless":
        batches = tuple(size for size, times in header.batches for _ in range(times))
        try:
            values = _bits_back(book, errors).decode(Coded(words, header.kept, batches, 0), on_progress)
        except (UnderflowError, ValueError, OverflowError) as error:
            raise damaged(str(error)) from error
    else:
        coder = _relative(book, errors)
        most = bits or math.inf
        found = coder.receive(words, header.count, header.moves, bits=most, on_progress=on_progress)
        values = run.assembly.data.to_storage(found).long()
    if bits is None and _hash_of(values) != header.pixels:
        raise damaged("the decoded values differ from the original ones")
    return entries, values


def _bits_back(book: Codebook, errors: Sequence[int]) -> BitsBack:
    return BitsBack(book.denoise, book.chain(errors), book.bins, book.spec.shape, book.device)


def _relative(book: Codebook, errors: Sequence[int]) -> Relative:
    return Relative(book.denoise, book.chain(errors), book.spec.shape, book.device)


def _require_same(book: Codebook, header: Header) -> None:
    """Raise DataError DK352 if anything differs that decoding depends on."""
    own = Identity(**book.identity, probe=book.probe())
    for name, fix in FIXES.items():
        theirs, ours = getattr(header.identity, name), getattr(own, name)
        if theirs != ours or (name == "model" and (header.shape, header.bins) != (book.spec.shape, book.bins)):
            note = f"the archive was made with torch {header.identity.torch}; this is torch {own.torch}"
            raise DataError(
                f"the archive requires {name} {theirs}, and here it is {ours}",
                code="DK352",
                fix=fix,
                notes=[note] if name == "probe" else (),
            )


def _hash_of(values: Tensor) -> str:
    return hash_of(np.ascontiguousarray(values.numpy().astype("<i4")).tobytes())


def describe(data: bytes) -> dict[str, Any]:
    """Return what an archive holds, without decoding it. Raises DataError DK351 if it is damaged."""
    header, entries, words = unpack(data)
    size = header.count * math.prod(header.shape)
    return {
        "mode": header.mode,
        "examples": header.count,
        "shape": list(header.shape),
        "values": header.bins,
        "files": [entry.name for entry in entries],
        "bytes": len(data),
        "header bytes": len(data) - header.names.bytes - header.stream.bytes,
        "names bytes": header.names.bytes,
        "stream bytes": header.stream.bytes,
        "bits per dimension": round(32 * len(words) / size, 4),
        "bits per example": round(32 * len(words) / header.count, 1),
        "layers": header.layers,
        "weights": header.average,
        "made with": header.identity.model_dump(),
    }
