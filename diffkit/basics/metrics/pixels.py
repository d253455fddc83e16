"""Convert examples to rows of pixels in float64; pixels of images are in [0, 1], as in image files.

Samples and examples may be too many for the memory, so they are read in blocks, and what is computed of each of them
lies in a temporary file.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence, Sized

import torch
from torch import Tensor

from diffkit import DataError, DataSpec, Evaluation


def pixels(x: Tensor, spec: DataSpec) -> Tensor:
    """Convert x: (N, C, *S) to (N, D) float64: (x + 1) / 2 if the data is bounded, else x itself.

    If the data has `bins`, x is first rounded to the nearest value of a stored example.
    """
    rows = x.flatten(1).double()
    if spec.bins is not None:
        top = spec.bins - 1
        return rows.add_(1).mul_(top / 2).round_().clamp_(0, top).div_(top)
    return rows.add_(1).div_(2) if spec.bounded else rows


class Pixels:
    """The rows `pixels(x, spec)`: (N, D), converted as they are read, so that only those are in memory.

    Raises DataError DK330 if a value is not finite.
    """

    def __init__(self, x: Tensor, spec: DataSpec) -> None:
        self.x, self.spec = x, spec
        self.shape = len(x), math.prod(x.shape[1:])
        bad = sum(int((~torch.isfinite(x[rows].flatten(1))).any(dim=1).sum()) for rows in row_blocks(self))
        if bad:
            raise DataError(
                f"{bad} of {len(x)} samples hold NaN or infinite values",
                code="DK330",
                fix="find the first bad value in metrics.jsonl; sample from an earlier checkpoint, or with more steps",
            )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return pixels(self.x[rows], self.spec)


Rows = Tensor | Pixels
BLOCK_BYTES = 64 << 20


def row_blocks(x: Rows, largest: int | None = None, columns: int = 1) -> Sequence[slice]:
    """Divide rows (N, D) into blocks that take at most `BLOCK_BYTES` in float64.

    Args:
        x: The rows.
        largest: The largest number of rows in a block; default unlimited.
        columns: Numbers that are computed from each row; default 1. They count if they are more than D.

    Returns:
        The rows of each block.
    """
    rows = max(1, BLOCK_BYTES // (8 * max(x.shape[1], columns)))
    rows = rows if largest is None else min(rows, largest)
    return [slice(start, min(start + rows, len(x))) for start in range(0, len(x), rows)]


def in_file(shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a tensor of zeros whose values lie in a temporary file, so that the system keeps in memory what is used.

    Args:
        shape: The shape of the tensor.
        dtype: The type of its values; default float64.

    Returns:
        The tensor.

    Raises:
        OSError: The folder for temporary files has too little space.
    """
    count = math.prod(shape)
    if not count:
        return torch.empty(*shape, dtype=dtype)
    with tempfile.NamedTemporaryFile() as file:
        size, zeros = count * dtype.itemsize, bytes(1 << 20)
        for start in range(0, size, len(zeros)):  # each later write to the tensor has its space on the disk then
            file.write(zeros[: size - start])
        file.flush()
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(*shape)


def kept(blocks: Iterable[tuple[Tensor, ...]], count: int) -> Tensor:
    """Join blocks of rows in a temporary file.

    Args:
        blocks: The blocks (B, *S), one after the other, each alone in a tuple.
        count: The number of all rows N, at least 1.

    Returns:
        (N, *S) in the type of the blocks.
    """
    found, start = torch.empty(0), 0
    for (block,) in blocks:
        if not start:
            found = in_file((count, *block.shape[1:]), block.dtype)
        found[start : start + len(block)] = block
        start += len(block)
    return found


def require_enough(evaluation: Evaluation, least: int = 2) -> tuple[Pixels, Pixels]:
    """Return samples and training examples as rows of pixels that are converted as they are read.

    Raises DataError DK331 for fewer than `least` examples.
    """
    for role, x in (("samples", evaluation.samples), ("training examples", evaluation.train)):
        if len(x) < least:
            raise DataError(
                f"{len(x)} {role} are too few for this metric, which requires {least}",
                code="DK331",
                fix="raise sample.count" if role == "samples" else "give more data",
            )
    return Pixels(evaluation.samples, evaluation.spec), Pixels(evaluation.train, evaluation.spec)


def counts(samples: Sized, reference: Sized) -> dict[str, float]:
    """Return the numbers of examples, which every metric reports since many are biased for few samples."""
    return {"samples": float(len(samples)), "reference": float(len(reference))}


def subset(count: int, limit: int, generator: torch.Generator) -> Tensor:
    """Choose at most `limit` of the numbers below `count` at random, without repetition; all of them in order.

    Args:
        count: Number N of rows to choose from.
        limit: Number of rows to choose.
        generator: Source of the choice; it is used only if N is above the limit.

    Returns:
        The indices of the rows: (min(N, limit),).
    """
    return torch.arange(count) if count <= limit else torch.randperm(count, generator=generator)[:limit]
