"""Splits: choose the held-out examples, and build both parts from arrays in memory.

A hash of each example's key decides whether the example is held out, not its position and not a random generator.
With a fraction, the old examples stay in their parts when examples are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from diffkit import DataError, InMemorySplit, Part

Indices = list[int]
HeldOut = Annotated[int | float, Field(gt=0)]
"""An option `held_out`: a number of examples, or a fraction."""


def check_held_out(held_out: int | float) -> None:
    """Raise ValueError unless `held_out` is a number of examples >= 1 or a fraction between 0 and 1."""
    if held_out < 1 if isinstance(held_out, int) else not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; give a whole number of examples >= 1 or a fraction between 0 and 1")


def divide(keys: Sequence[str], held_out: int | float, groups: Sequence[int] | None = None) -> tuple[Indices, Indices]:
    """Divide examples into training and held-out ones.

    Args:
        keys: one text for each example; its hash decides.
        held_out: an int holds out exactly this number; a float holds out each example with this probability, and at
            least one.
        groups: with an int, the class of each example, so that each class gives the same share.

    Returns:
        Indices of the training examples and of the held-out ones, both ascending.

    Raises:
        DataError: DK304, no example is left to train on.
    """
    ranks = [_rank(key) for key in keys]
    amount = held_out if isinstance(held_out, int) else sum(rank < held_out * 2.0**64 for rank in ranks) or 1
    if amount >= len(keys):
        raise _too_few(len(keys), held_out)
    chosen: set[int] = set()
    for members, quota in _quotas(len(keys), amount, groups):
        chosen.update(sorted(members, key=lambda i: (ranks[i], i))[:quota])
    return [i for i in range(len(keys)) if i not in chosen], sorted(chosen)


def divide_ranks(ranks: Tensor, held_out: int | float) -> tuple[Tensor, Tensor]:
    """Divide any number of examples as `divide` does, in tensors.

    Args:
        ranks: (N,) long, ordered as the hash of each example: the hash less 2^63.
        held_out: an int holds out exactly this number; a float each example with this probability, and at least one.

    Returns:
        Indices of the training examples and of the held-out ones, both ascending: long.

    Raises:
        DataError: DK304, no example is left to train on.
    """
    count = len(ranks)
    share = held_out if isinstance(held_out, int) else int((ranks < int(held_out * 2.0**64) - (1 << 63)).sum()) or 1
    if share >= count:
        raise _too_few(count, held_out)
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[ranks.argsort(stable=True)[:share]] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def _too_few(count: int, held_out: int | float) -> DataError:
    fix = "give more data, or a smaller data.held_out"
    return DataError(f"{count} examples are too few to hold out {held_out}", code="DK304", fix=fix)


def _rank(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def _quotas(count: int, amount: int, groups: Sequence[int] | None) -> list[tuple[Indices, int]]:
    """Divide `amount` held-out examples over the groups; return the members of each group and its number."""
    if groups is None:
        return [(list(range(count)), amount)]
    members: dict[int, Indices] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    quotas = {group: amount * len(rows) // count for group, rows in members.items()}
    by_remainder = sorted(members, key=lambda group: (-(amount * len(members[group]) % count), group))
    for group in by_remainder[: amount - sum(quotas.values())]:
        quotas[group] += 1
    return [(members[group], quotas[group]) for group in sorted(members)]


def in_memory(x: Tensor, labels: Tensor | None) -> InMemorySplit:
    """Build one part from x: (N, C, *S) and labels: (N,) long, or None for a part without labels."""
    return InMemorySplit(x, {} if labels is None else {"label": labels})


def in_memory_parts(
    x: Tensor, labels: Tensor | None, rows: tuple[Sequence[int], Sequence[int]]
) -> Mapping[Part, InMemorySplit]:
    """Build both parts from arrays.

    Args:
        x: all examples, (N, C, *S).
        labels: (N,) long, or None.
        rows: indices of the training and of the held-out examples.

    Returns:
        The parts "train" and "held-out".
    """
    train, held_out = (torch.as_tensor(part, dtype=torch.long) for part in rows)
    return {
        "train": in_memory(x[train], None if labels is None else labels[train]),
        "held-out": in_memory(x[held_out], None if labels is None else labels[held_out]),
    }


def check_label_type(shape: tuple[int, ...], dtype: np.dtype[Any], count: int, source: object) -> None:
    """Check that an array can hold one label for each image.

    Args:
        shape: the shape of the array.
        dtype: the type of its values.
        count: the number of images.
        source: the file, named in messages.

    Raises:
        DataError: DK305, wrong shape or type.
    """
    if shape != (count,):
        raise DataError(
            f"{source}: labels have shape {shape}, but there are {count} images",
            code="DK305",
            fix=f"store exactly one label for each image: shape ({count},)",
        )
    if not np.issubdtype(dtype, np.integer):
        fix = "number the classes: numpy.unique(labels, return_inverse=True)[1]"
        raise DataError(f"{source}: labels are {dtype}, not integers", code="DK305", fix=fix)


def check_labels(labels: NDArray[Any], count: int, classes: int | None, source: object) -> Tensor:
    """Check that there is one label for each image, and that all are in range.

    Args:
        labels: the array in the file, of any shape and type.
        count: the number of images.
        classes: labels must be in 0..classes - 1; None allows 0..count - 1.
        source: the file, named in messages.

    Returns:
        The labels as (count,) long.

    Raises:
        DataError: DK305, wrong shape, type or range.
    """
    check_label_type(labels.shape, labels.dtype, count, source)
    low, high = (int(labels.min()), int(labels.max())) if count else (0, 0)
    limit = count if classes is None else classes
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        raise DataError(
            f"{source}: label {wrong} of example {int(np.flatnonzero(labels == wrong)[0])} is out of range",
            code="DK305",
            choices=f"0 to {limit - 1}",
            fix="number the classes from 0 without gaps: numpy.unique(labels, return_inverse=True)[1]",
        )
    return torch.from_numpy(labels.astype(np.int64))
