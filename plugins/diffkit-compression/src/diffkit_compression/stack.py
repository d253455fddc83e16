"""A stack of bits: an ANS coder of constriction, with the distributions that latents and pixels need.

What is pushed last is popped first, and a popped symbol of a distribution costs a negative number of bits. Below the
data lies a ground of bits that are equal on both sides, so that the first pops have bits to consume; a file contains
only the words of the ground that have changed.
Source: Duda et al. 2015 (doi:10.1109/PCS.2015.7170048) for ANS; Bamler 2022 (arXiv:2201.01741) for constriction.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
from constriction import stream
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint32]
FRACTIONS = 256
"""Places between two points of a lattice to which a mean is rounded: a rate of 2^-22 bits per symbol at most."""
TAIL = 7.0
"""Half the width of a support in standard deviations."""
MAX_HALF_WIDTH = 1 << 12
MAX_BEYOND = 1 << 16
"""Largest distance of a latent from the end of its support, in steps of the lattice."""
MAX_ENTRIES = 1 << 22
"""Entries of the tables that are held at a time."""
_TABLES, _BEYOND = stream.model.Categorical(perfect=False), stream.model.Uniform(MAX_BEYOND)


class UnderflowError(Exception):
    """Raised if more bits were popped than the stack had, which cannot be undone."""


class Stack:
    """A stack of bits on a ground of `ground` known words, or on `data` on top of its first `kept` words.

    Args:
        ground: Number of words of 32 bits.
        data: Words that replace the ground from word `kept` on; default none.
        kept: Number of words of the ground below `data`.
    """

    def __init__(self, ground: int, data: Words | None = None, kept: int | None = None) -> None:
        self._ground = known_words(ground)
        start = self._ground if data is None else np.concatenate([self._ground[:kept], data])
        self._coder = stream.stack.AnsCoder(start)

    @property
    def bits(self) -> int:
        """The number of bits above the ground, negative if some of the ground is consumed."""
        return int(self._coder.num_valid_bits()) - 32 * len(self._ground)

    @property
    def is_ground(self) -> bool:
        """Whether exactly the ground is left."""
        return bool(np.array_equal(self._coder.get_compressed(), self._ground))

    def split(self) -> tuple[int, Words]:
        """Return the number of words of the ground that are unchanged at the bottom, and all other words."""
        words = np.asarray(self._coder.get_compressed(), np.uint32)
        shared = min(len(words), len(self._ground))
        changed = np.flatnonzero(words[:shared] != self._ground[:shared])
        kept = int(changed[0]) if len(changed) else shared
        return kept, words[kept:]

    def push(self, symbols: Ints, tables: Floats) -> None:
        """Push symbols (n,), 0 to k - 1, each of its own distribution: rows of `tables` (n, k), any positive scale."""
        for rows in reversed(list(_slices(len(symbols), tables.shape[1]))):
            self._coder.encode_reverse(symbols[rows].astype(np.int32), _TABLES, tables[rows])

    def pop(self, tables: Floats) -> Ints:
        """Pop symbols (n,) of the distributions that the rows of `tables` (n, k) give."""
        found = [self._coder.decode(_TABLES, tables[rows]) for rows in _slices(len(tables), tables.shape[1])]
        self._require_bits()
        return np.concatenate(found).astype(np.int64)

    def push_normal(self, points: Ints, mean: Floats, std: float | Floats, *, escapes: bool = True) -> None:
        """Push points of the lattice of integers under a discrete normal distribution.

        Args:
            points: Integers: (n,).
            mean: Means: (n,).
            std: Standard deviation: a float, or (n,).
            escapes: Whether points outside the support are possible; they cost 40 bits. A distribution from which
                points are popped first has none, since a popped escape would be a point without a meaning.

        Raises:
            OverflowError: A point is too far from its mean.
        """
        lattice = Support(mean, std)
        offset = points - lattice.centre
        if escapes:
            beyond = np.abs(offset) - lattice.half_width
            far = beyond >= 0
            if far.any():
                if int(beyond.max()) >= MAX_BEYOND:
                    raise OverflowError("a latent is further from the mean of the model than an archive can express")
                self._coder.encode_reverse(beyond[far].astype(np.int32), _BEYOND)
                offset = np.clip(offset, -lattice.half_width, lattice.half_width)
        for rows in reversed(list(lattice.slices())):
            symbols = (offset[rows] + lattice.half_width).astype(np.int32)
            self._coder.encode_reverse(symbols, _TABLES, lattice.tables(rows))

    def pop_normal(self, mean: Floats, std: float | Floats, *, escapes: bool = True) -> Ints:
        """Pop points of the lattice of integers, the inverse of `push_normal` with the same arguments.

        Args:
            mean: Means: (n,).
            std: Standard deviation: a float, or (n,).
            escapes: As they were pushed.

        Returns:
            Integers: (n,).

        Raises:
            UnderflowError: The stack has too few bits.
        """
        lattice = Support(mean, std)
        found = [self._coder.decode(_TABLES, lattice.tables(rows)) for rows in lattice.slices()]
        offset = np.concatenate(found).astype(np.int64) - lattice.half_width
        far = np.abs(offset) == lattice.half_width
        if escapes and far.any():
            offset[far] += np.sign(offset[far]) * self._coder.decode(_BEYOND, int(far.sum()))
        self._require_bits()
        return lattice.centre + offset

    def _require_bits(self) -> None:
        # An empty coder decodes the first symbol of every distribution without an error.
        if self._coder.num_words() < 2:
            raise UnderflowError("more bits were popped than the stack had")


class Support:
    """Discrete normal distributions on integers around the integer `centre` next to each mean.

    P(k) ~ exp(-(k - mean)^2 / (2 std^2)), whose variance is std^2 within 3e-8 for std >= 1, where the mass that the
    density has in the bin of each k would have std^2 + 1/12.
    """

    def __init__(self, mean: Floats, std: float | Floats) -> None:
        self.centre: Ints = np.rint(mean).astype(np.int64)
        place = np.rint((mean - self.centre) * FRACTIONS).astype(np.int64)
        self.half_width = min(max(2, math.ceil(TAIL * float(np.max(std))) + 1), MAX_HALF_WIDTH)
        self._std, self._place = std, place
        if not isinstance(std, np.ndarray):  # one table for each place of the mean
            every = np.arange(-FRACTIONS // 2, FRACTIONS // 2 + 1)
            self._tables = _normal_tables(every / FRACTIONS, std, self.half_width)

    def slices(self) -> Iterator[slice]:
        """Yield slices of the rows whose tables fit in memory."""
        return _slices(len(self.centre), 2 * self.half_width + 1)

    def tables(self, rows: slice) -> Floats:
        """Return P(k), unnormalised, for k = -half_width..half_width around the centres: (n, 2 half_width + 1)."""
        if isinstance(self._std, np.ndarray):
            return _normal_tables(self._place[rows] / FRACTIONS, self._std[rows][:, None], self.half_width)
        return self._tables[self._place[rows] + FRACTIONS // 2]


def _normal_tables(mean: Floats, std: float | Floats, half_width: int) -> Floats:
    k = np.arange(-half_width, half_width + 1)
    exponent = -0.5 * ((k - mean[:, None]) / std) ** 2
    found: Floats = np.exp(exponent - exponent.max(1, keepdims=True))
    return found


def _slices(count: int, width: int) -> Iterator[slice]:
    size = max(1, MAX_ENTRIES // width)
    for start in range(0, count, size):
        yield slice(start, start + size)


def known_words(count: int) -> Words:
    """Return `count` words that look random, the same on every machine."""
    words = np.frombuffer(hashlib.shake_128(b"diffkit").digest(4 * count), "<u4").astype(np.uint32)
    words[-1:] |= 1 << 31  # a coder drops zeros at the top
    return words
