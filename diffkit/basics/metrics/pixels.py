"""What pixel metrics see: rows of float64, images as a file would hold them, in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.data import DataSpec
from diffkit.errors import DataError
from diffkit.metric import Evaluation


def pixels(x: Tensor, spec: DataSpec) -> Tensor:
    """x: (N, C, *S) -> (N, D) float64: (x + 1) / 2 where the data is bounded, x itself otherwise.

    Where the data has `bins`, x is first rounded to the nearest value that a stored example can have, so that a
    sample is judged as it will be seen. Raises DataError DK330 where a value is not finite.
    """
    rows = x.flatten(1).double()
    if not torch.isfinite(rows).all():
        bad = int((~torch.isfinite(rows)).any(dim=1).sum())
        raise DataError(
            f"{bad} of {len(rows)} samples hold NaN or infinite values",
            code="DK330",
            fix="look for the first bad value in metrics.jsonl; sample from an earlier checkpoint, or with more steps",
        )
    if spec.bins is not None:
        top = spec.bins - 1
        return rows.add_(1).mul_(top / 2).round_().clamp_(0, top).div_(top)
    return rows.add_(1).div_(2) if spec.bounded else rows


def compared(evaluation: Evaluation, least: int = 2) -> tuple[Tensor, Tensor]:
    """Samples and training examples as rows of pixels. Raises DataError DK331 where one has fewer than `least`."""
    for role, x in (("samples", evaluation.samples), ("training examples", evaluation.train)):
        if len(x) < least:
            raise DataError(
                f"{len(x)} {role} are too few for this metric, which needs {least}",
                code="DK331",
                fix="raise sample.count" if role == "samples" else "give more data",
            )
    return pixels(evaluation.samples, evaluation.spec), pixels(evaluation.train, evaluation.spec)


def counts(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """How many examples a value was computed from: every metric says so, for few samples bias many of them."""
    return {"samples": float(len(samples)), "reference": float(len(reference))}


def subset(rows: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """`limit` of the rows, chosen at random without repetition; all of them where there are no more."""
    if len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:limit]]
