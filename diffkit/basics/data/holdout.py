"""Which examples are held out: a hash of each example's key decides, never its position or a random generator.

With a fraction, adding examples moves none of the old ones from one part to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from diffkit.errors import DataError

Indices = list[int]


def check_amount(held_out: int | float) -> None:
    """`held_out` is a number of examples, at least 1, or a fraction between 0 and 1. Raises ValueError."""
    if held_out < 1 if isinstance(held_out, int) else not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; give a whole number of examples >= 1 or a fraction between 0 and 1")


def divide(keys: Sequence[str], held_out: int | float, groups: Sequence[int] | None = None) -> tuple[Indices, Indices]:
    """Indices of the training examples and of the held-out ones, both ascending.

    A number holds out exactly that many, the same share of each group where `groups` are given; a fraction holds
    out each example with that probability, and at least one. Raises DataError DK304 where nothing is left to train.
    """
    ranks = [_rank(key) for key in keys]
    amount = held_out if isinstance(held_out, int) else sum(rank < held_out * 2.0**64 for rank in ranks) or 1
    if amount >= len(keys):
        raise DataError(
            f"{len(keys)} examples are too few to hold out {held_out}",
            code="DK304",
            fix="give more data, or a smaller data.held_out",
        )
    chosen: set[int] = set()
    for members, quota in _quotas(len(keys), amount, groups):
        chosen.update(sorted(members, key=lambda i: (ranks[i], i))[:quota])
    return [i for i in range(len(keys)) if i not in chosen], sorted(chosen)


def _rank(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def _quotas(count: int, amount: int, groups: Sequence[int] | None) -> list[tuple[Indices, int]]:
    """Members of each group and how many of them are held out, by the largest remainder."""
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
