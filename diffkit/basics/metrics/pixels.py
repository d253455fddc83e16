"""Convert examples to rows of pixels in float64; pixels of images are in [0, 1], as in image files."""

from __future__ import annotations

import math
from collections.abc import Sized

import torch
from torch import Tensor

from diffkit import DataError, DataSpec, Evaluation


def pixels(x: Tensor, spec: DataSpec) -> Tensor:
    """Convert x: (N, C, *S) to (N, D) float64: (x + 1) / 2 if the data is bounded, else x itself.

    If the data has `bins`, x is first rounded to the nearest value of a stored example. Raises DataError DK330 if a
    value is not finite.
    """
    rows = x.flatten(1).double()
    if not torch.isfinite(rows).all():
        bad = int((~torch.isfinite(rows)).any(dim=1).sum())
        raise DataError(
            f"{bad} of {len(rows)} samples hold NaN or infinite values",
            code="DK330",
            fix="find the first bad value in metrics.jsonl; sample from an earlier checkpoint, or with more steps",
        )
    if spec.bins is not None:
        top = spec.bins - 1
        return rows.add_(1).mul_(top / 2).round_().clamp_(0, top).div_(top)
    return rows.add_(1).div_(2) if spec.bounded else rows


class Pixels:
    """The rows `pixels(x, spec)`: (N, D), converted as they are read, so that only those are in memory."""

    def __init__(self, x: Tensor, spec: DataSpec) -> None:
        self.x, self.spec = x, spec
        self.shape = len(x), math.prod(x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return pixels(self.x[rows], self.spec)


Rows = Tensor | Pixels


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


def compared(evaluation: Evaluation, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return all samples and training examples as rows of pixels; see `require_enough`."""
    samples, train = require_enough(evaluation, least)
    return samples[:], train[:]


def counts(samples: Sized, reference: Sized) -> dict[str, float]:
    """Return the numbers of examples, which every metric reports since many are biased for few samples."""
    return {"samples": float(len(samples)), "reference": float(len(reference))}


def subset(rows: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Choose at most `limit` of the rows at random, without repetition.

    Args:
        rows: (N, ...).
        limit: Number of rows to choose.
        generator: Source of the choice.

    Returns:
        (min(N, limit), ...).
    """
    if len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:limit]]
