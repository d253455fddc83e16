"""The candidates of relative entropy coding: standard normal numbers, the same for sender and receiver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .stack import Floats, Ints

BLOCK, ARRANGED = 1024, 64
"""Candidates that are drawn together, and the most blocks that are arrangements of the same numbers."""


class Candidates:
    """Standard normal candidates (d,), numbered from 0, which sender and receiver draw in blocks.

    Drawing is what takes time, so up to 64 blocks are arrangements of the same numbers, with other signs and another
    order of the dimensions. A block is drawn once for all examples of a batch too. Each example has its own signs and
    order, and starts at its own place of the block; with the same candidates, the errors of examples are correlated.

    Args:
        place: Three numbers that identify the move, the part and the batch.
        count: Number of examples B.
        size: Number of dimensions d.
    """

    def __init__(self, place: tuple[int, int, int], count: int, size: int) -> None:
        self.arrangements = max(1, min(ARRANGED, size // 2))
        """Blocks of the same numbers; few dimensions have few arrangements."""
        self._place, self._size = place, size
        rng = self._source(0)
        self._order, self._signs = _arrange(rng, count, size)
        self._rows = (rng.integers(0, BLOCK, (count, 1)) + np.arange(BLOCK)) % BLOCK
        self._held: tuple[int, Drawn] | None = None

    def turn(self, directions: Floats) -> Floats:
        """Turn directions (B, d), so that their products with blocks are those with the candidates of each example."""
        return _turned(directions, self._order, self._signs)

    def weigh(self, turned: Floats, curvature: float, active: Ints, start: int, blocks: int) -> NDArray[np.float32]:
        """Compute the part of log w that depends on a candidate: direction . candidate - curvature |candidate|^2.

        Args:
            turned: Directions of some examples, from `turn`: (A, d).
            curvature: The factor of the square.
            active: These examples: (A,).
            start: The first block.
            blocks: Number of blocks, all of the same numbers.

        Returns:
            The values in the order of the numbers: (A, blocks * BLOCK).
        """
        drawn, first = self._draw(start // self.arrangements), start % self.arrangements
        some = slice(first, first + blocks)
        every = _turned(turned[:, None], drawn.orders[None, some], drawn.signs[None, some]).astype(np.float32)
        found = (every.reshape(-1, self._size) @ drawn.numbers.T).reshape(len(turned), blocks, BLOCK)
        found -= np.float32(curvature) * np.einsum("nd,nd->n", drawn.numbers, drawn.numbers)
        return np.take_along_axis(found, self._rows[active, None], 2).reshape(len(turned), -1)

    def take(self, numbers: Ints) -> Floats:
        """Draw the candidates of these numbers, one for each example: (B,) -> (B, d)."""
        found = np.empty((len(numbers), self._size))
        for block in np.unique(numbers // BLOCK):
            rows = numbers // BLOCK == block
            drawn, place = self._draw(int(block) // self.arrangements), int(block) % self.arrangements
            chosen = drawn.numbers[self._rows[rows, numbers[rows] % BLOCK]]
            found[rows] = drawn.signs[place] * chosen[:, drawn.orders[place]]
        return self._signs * np.take_along_axis(found, self._order, 1)

    def _draw(self, group: int) -> Drawn:
        if self._held is None or self._held[0] != group:
            rng = self._source(group + 1)
            orders, signs = _arrange(rng, self.arrangements, self._size)
            self._held = group, Drawn(rng.standard_normal((BLOCK, self._size), np.float32), orders, signs)
        return self._held[1]

    def _source(self, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([*self._place, number])))


@dataclass(frozen=True)
class Drawn:
    """Numbers (BLOCK, d), and arrangements of them: orders of the dimensions and signs (arrangements, d)."""

    numbers: NDArray[np.float32]
    orders: Ints
    signs: Floats


def _arrange(rng: np.random.Generator, count: int, size: int) -> tuple[Ints, Floats]:
    """Draw orders of the dimensions and signs: each (count, size)."""
    order = rng.permuted(np.tile(np.arange(size), (count, 1)), axis=1)
    return order, rng.choice(np.array([-1.0, 1.0]), (count, size))


def _turned(directions: Floats, order: Ints, signs: Floats) -> Floats:
    """Arrange the other factor of a product in place of numbers, which are arranged as numbers[order] * signs."""
    signed = signs * directions
    found = np.empty_like(signed)
    np.put_along_axis(found, np.broadcast_to(order, signed.shape), signed, -1)
    return found
