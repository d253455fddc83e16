"""Turn arrays held in memory into parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.data import InMemorySplit, Part
from diffkit.errors import DataError


def labelled(x: Tensor, labels: Tensor | None) -> InMemorySplit:
    """A part with labels, or without where they are None."""
    return InMemorySplit(x, {} if labels is None else {"label": labels})


def divided(
    x: Tensor, labels: Tensor | None, rows: tuple[Sequence[int], Sequence[int]]
) -> Mapping[Part, InMemorySplit]:
    """Both parts of x: (N, C, *S) and labels: (N,); `rows` holds the indices of the training and held-out examples."""
    train, held_out = (torch.as_tensor(part, dtype=torch.long) for part in rows)
    return {
        "train": labelled(x[train], None if labels is None else labels[train]),
        "held-out": labelled(x[held_out], None if labels is None else labels[held_out]),
    }


def checked_labels(labels: NDArray[np.generic], count: int, classes: int | None, source: object) -> Tensor:
    """Labels as (N,) long: one for each of `count` images, in 0..classes - 1 (count - 1 where classes is None).

    Raises DataError DK305.
    """
    if labels.shape != (count,):
        raise DataError(
            f"{source}: labels have shape {labels.shape}, but there are {count} images",
            code="DK305",
            fix=f"store exactly one label for each image: shape ({count},)",
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{source}: labels are {labels.dtype}, not integers", code="DK305", fix="store them as int64")
    low, high = (int(labels.min()), int(labels.max())) if count else (0, 0)
    limit = count if classes is None else classes
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        where = int(np.flatnonzero(labels == wrong)[0])
        raise DataError(
            f"{source}: label {wrong} of example {where} is out of range",
            code="DK305",
            choices=f"0 to {limit - 1}",
            fix="number the classes 0, 1, 2, ... without gaps, or check that the file holds labels",
        )
    return torch.from_numpy(labels.astype(np.int64))
