"""Lossy coding: relative entropy coding of the latents z_N, z_{N-1}, ..., from noise to data.

Both sides draw the same candidates from the model of z_s given z_t. The sender chooses the one that makes z_s a sample
of q(z_s | z_t, x0) (Poisson functional representation) and sends its number, about KL bits. A move passes over several
layers, or is divided into parts of the dimensions, so that each number takes about 8 bits. The numbers of all examples
form one stream, noisiest level first: any prefix of it decodes to the pictures that the model sees at a noisier level.
Source: Li & El Gamal 2018 (arXiv:1701.02827); Theis et al. 2022 (arXiv:2206.08889) for diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from constriction import stream
from numpy.typing import NDArray
from torch import Tensor

from diffkit import Denoiser, Level, transition
from diffkit.likelihood import Chain
from diffkit.likelihood.chain import prior_kl

from .bits_back import Progress
from .candidates import BLOCK, Candidates
from .stack import Floats, Ints, Words

BITS_PER_NUMBER = 8.0
"""The most bits of KL that a number is expected to take; more would need too many candidates, fewer waste more bits."""
WASTE = 2.7
"""Bits that a number takes beyond its KL, whatever its size: 34 % at 8, 45 % at 6 and 85 % at 3."""
LEAST_NUMBERS, GROWTH = 2, 0.5
"""A move over several layers may take two numbers per example, or add half to the bits before it: larger moves take
fewer bits and less time in all, but leave fewer rates for the prefixes of a stream."""
EXTRA_BITS, DEVIATIONS, RARE_BITS = 8.0, 2.5, 2.0
"""A sender examines 2^(KL + 8) candidates, or more until their number exceeds the ratio of densities for all but 2.5 of
the standard deviations of its logarithm, as the samples are biased by the share of q beyond. Rare examples, more than 2
bits above the mean of their batch, would multiply the time of all, and get fewer, but not less than the former."""
MAX_LOG2 = 24
"""Numbers are below 2^24."""
WIDTH = 1 << 16
"""Candidates of all examples that a sender weighs at a time."""
MAX_BATCH, MAX_NUMBERS = 256, 1 << 20
LEAST_PRIOR_BITS = 0.02
"""Expected bits per example below which z_N is drawn from the prior without a number."""


@dataclass(frozen=True)
class Move:
    """A step of all examples from layer `start` to layer `end`.

    The dimensions are divided at random into parts. Each part has a number of about `bits` bits. The start of the first
    move may be one above the last layer: from nothing to z_N.
    """

    start: int
    end: int
    parts: int
    bits: float


@dataclass
class Sent:
    """A stream, and what it cost.

    words     the data: (n,) uint32
    moves     moves that it holds
    kl        KL of each move, the mean over the examples in bits per example
    ends      words after each move
    """

    words: Words
    moves: int
    kl: list[float] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


class Relative:
    """The coder of a model: sends examples, and receives pictures.

    Args:
        denoise: The model.
        chain: The layers, with variance `optimal`.
        shape: Shape of an example: (C, *S).
        device: Device of the model; default the CPU.
        bits_per_number: Bits of KL that a number is expected to take; default 8.
    """

    def __init__(
        self,
        denoise: Denoiser,
        chain: Chain,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        bits_per_number: float = BITS_PER_NUMBER,
    ) -> None:
        self.denoise, self.chain, self.shape, self.device = denoise, chain, tuple(shape), device
        self.bits_per_number = bits_per_number
        self._size = math.prod(shape)

    @cached_property
    def plan(self) -> list[Move]:
        """All moves, from noise to z_1."""
        i, ends, found = len(self.chain), self._ends(), list[Move]()
        unit = torch.ones(1, *self.shape, dtype=torch.float64)  # a mean square of 1, the largest of bounded data
        prior = float(prior_kl(self.chain.levels[0], unit)) * self._size / math.log(2.0)
        if prior >= LEAST_PRIOR_BITS:
            parts = math.ceil(prior / self.bits_per_number)
            found.append(Move(i + 1, i, parts, prior / parts))
        while i > 1:
            j = ends[i]
            bits = float(self._expected(i)[j - 1])
            parts = min(self._size, math.ceil(bits / self.bits_per_number))
            found.append(Move(i, j, parts, bits / parts))
            i = j
        return found

    def send(
        self,
        x0: Tensor,
        *,
        bits: float = math.inf,
        seed: int = 0,
        on_progress: Progress = lambda done, count: None,
    ) -> Sent:
        """Send examples with as many moves as fit.

        Args:
            x0: Clean data in the range of the model: (N, C, *S).
            bits: The most bits per example; default no limit: all moves.
            seed: Seed of the choices of the sender.
            on_progress: Called after each move with the numbers of moves that are done, and of all.

        Returns:
            The stream.
        """
        choices = np.random.Generator(np.random.Philox(seed))
        clean, z = x0.double().flatten(1).numpy(), self._start(len(x0))
        encoder, numbers, sent = stream.queue.RangeEncoder(), NumberModel(), Sent(np.zeros(0, np.uint32), 0)
        for place, move in enumerate(self.plan):
            kl = 0.0
            for rows in self._batches(len(x0)):
                step = self._step(move, z[rows])
                target = step.target(clean[rows])
                for part, dims in enumerate(self._parts(place, move)):
                    shift = (target - step.mean)[:, dims]
                    candidates = Candidates((place, part, rows.start), *shift.shape)
                    found, cost = choose(candidates, shift, step, choices)
                    numbers.encode(encoder, found, move.bits)
                    z[rows, dims] = step.mean[:, dims] + step.std * candidates.take(found)
                    kl += cost
            words = encoder.get_compressed()
            if 32 * len(words) > bits * len(x0):
                break
            sent = Sent(words, place + 1, [*sent.kl, kl / len(x0)], [*sent.ends, len(words)])
            on_progress(sent.moves, len(self.plan))
        return sent

    def receive(
        self,
        words: Words,
        count: int,
        moves: int,
        *,
        bits: float = math.inf,
        on_progress: Progress = lambda done, count: None,
    ) -> Tensor:
        """Decode the pictures of a stream, or of a prefix of it.

        Args:
            words: The stream, or its first words.
            count: Number of examples.
            moves: Moves that the stream holds.
            bits: The most bits per example to decode; default all.
            on_progress: Called after each move with the numbers of moves that are done, and of all.

        Returns:
            Estimates of x0: (N, C, *S) float32.
        """
        level, z = self.chain.level(len(self.chain)), self._start(count)
        for place, (move, found, spent) in enumerate(self._numbers(words, count, moves)):
            if spent > bits * count:
                break
            for rows in self._batches(count):
                step = self._step(move, z[rows])
                for part, dims in enumerate(self._parts(place, move)):
                    candidates = Candidates((place, part, rows.start), *step.mean[:, dims].shape)
                    z[rows, dims] = step.mean[:, dims] + step.std * candidates.take(found[rows.start, part])
            level = self.chain.level(move.end)
            on_progress(place + 1, moves)
        return torch.cat([self._estimate(z[rows], level) for rows in self._batches(count)]).float()

    def rates(self, words: Words, count: int, moves: int) -> list[float]:
        """Compute the bits per example after each move of a stream: at these rates a prefix decodes to more.

        Args:
            words: The stream.
            count: Number of examples.
            moves: Moves that the stream holds.

        Returns:
            The bits.
        """
        return [spent / count for _, _, spent in self._numbers(words, count, moves)]

    def _numbers(
        self, words: Words, count: int, moves: int
    ) -> Iterator[tuple[Move, dict[tuple[int, int], Ints], float]]:
        """Yield each move, its numbers by batch and part, and the bits of all numbers up to it."""
        decoder, numbers = stream.queue.RangeDecoder(words), NumberModel()
        for move in self.plan[:moves]:
            found = {
                (rows.start, part): numbers.decode(decoder, rows.stop - rows.start, move.bits)
                for rows in self._batches(count)
                for part in range(move.parts)
            }
            yield move, found, numbers.spent

    def _start(self, count: int) -> Floats:
        """The latents z_N that both sides draw."""
        rng = np.random.Generator(np.random.Philox(key=1))
        return float(self.chain.levels[0].scale) * rng.standard_normal((count, self._size))

    def _parts(self, place: int, move: Move) -> list[Ints]:
        """The dimensions of each part: at random, since neighbours in a picture are hard to predict together."""
        order = np.random.Generator(np.random.Philox(key=[2, place])).permutation(self._size)
        return [order[part :: move.parts] for part in range(move.parts)]

    def _batches(self, count: int) -> Iterator[slice]:
        size = max(1, min(MAX_BATCH, MAX_NUMBERS // self._size))
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def _estimate(self, z: Floats, level: Level) -> Tensor:
        at = torch.from_numpy(z).to(self.device, torch.float32).reshape(-1, *self.shape)
        with torch.no_grad():
            return self.denoise(at, level).x0.double().cpu()

    def _variance(self, i: int, j: int) -> tuple[float, float, float]:
        """(Q, std of q, std of the model) of z_j given z_i."""
        assert self.chain.errors is not None
        t, s = self.chain.level(i), self.chain.level(j)
        q, small = float(transition.posterior_mean(t, s)[1]), float(transition.posterior(t, s))
        return q, small, math.sqrt(small**2 + q**2 * self.chain.errors[i - 1])

    @cached_property
    def _snr(self) -> Floats:
        """The signal-to-noise ratio of layers 1, 2, ..."""
        return np.array([float(self.chain.level(i).snr) for i in range(1, len(self.chain) + 1)])

    def _expected(self, i: int) -> Floats:
        """The bits per example that moves from layer i to layers 1, ..., i - 1 are expected to take."""
        assert self.chain.errors is not None
        change = self._snr[: i - 1] - self._snr[i - 1]
        found: Floats = 0.5 * self._size * np.log2(1.0 + float(self.chain.errors[i - 1]) * change)
        return found

    def _ends(self) -> list[int]:
        """The layer to which the move from each layer leads, so that all moves to layer 1 take the fewest bits."""
        cost, ends, n = [0.0, 0.0], [0, 0], len(self.chain)
        before = [*self._expected(n), 0.0]
        for i in range(2, n + 1):
            bits = self._expected(i)
            total = bits + WASTE * np.ceil(bits / self.bits_per_number) + cost[1:]
            most = max(LEAST_NUMBERS * self.bits_per_number, GROWTH * before[i - 1])
            total[:-1][bits[:-1] > most] = np.inf
            ends.append(int(total.argmin()) + 1)
            cost.append(float(total.min()))
        return ends

    def _step(self, move: Move, z: Floats) -> Step:
        if move.start > len(self.chain):
            level = self.chain.levels[0]
            return Step(np.zeros_like(z), np.zeros_like(z), float(level.alpha), float(level.sigma), float(level.scale))
        x0 = self._estimate(z, self.chain.level(move.start)).flatten(1).numpy()
        q, small, std = self._variance(move.start, move.end)
        p = float(transition.posterior_mean(self.chain.level(move.start), self.chain.level(move.end))[0])
        return Step(p * z + q * x0, p * z, q, small, std)


@dataclass(frozen=True)
class Step:
    """The distributions of one move: the model N(mean, std^2), and q = N(offset + factor x0, small^2)."""

    mean: Floats
    offset: Floats
    factor: float
    small: float
    std: float

    def target(self, x0: Floats) -> Floats:
        """The mean of q for clean data: (B, D)."""
        found: Floats = self.offset + self.factor * x0
        return found


def choose(candidates: Candidates, shift: Floats, step: Step, source: np.random.Generator) -> tuple[Ints, float]:
    """Choose for each example the number of a candidate, so that the candidate is a sample of q.

    It minimises T_n / w_n, with T_n the times of a Poisson process and w_n the ratio of the densities of q and of the
    model. Times are drawn only for candidates that can still win: the wait over k others has a gamma distribution. The
    search ends if no later candidate can win, since w has a maximum, or after as many as `EXTRA_BITS` describes: log w
    of samples of q has the mean KL and the variance d (1 - r)^2 / 2 + r shift^2 / std^2, with r = small^2 / std^2.

    Args:
        candidates: The candidates of these dimensions.
        shift: Mean of q minus mean of the model: (B, d).
        step: The standard deviations.
        source: Random numbers of the sender.

    Returns:
        The numbers: (B,), and the sum of KL(q || model) over the examples, in bits.
    """
    d = shift.shape[1]
    square, log_ratio, share = (shift**2).sum(1), math.log(step.std / step.small), (step.small / step.std) ** 2
    kl = (d * (log_ratio - 0.5 + 0.5 * share) + 0.5 * square / step.std**2) / math.log(2.0)
    wanted = kl + DEVIATIONS * np.sqrt(0.5 * d * (1.0 - share) ** 2 + share * square / step.std**2) / math.log(2.0)
    log2_most = np.maximum(kl + EXTRA_BITS, np.minimum(wanted, wanted.mean() + RARE_BITS))
    most = np.minimum(np.ceil(2.0**log2_most), 2.0**MAX_LOG2)
    highest = d * log_ratio + 0.5 * square / (step.std**2 - step.small**2)
    curvature = 0.5 * ((step.std / step.small) ** 2 - 1.0)
    best, chosen, time = np.full(len(shift), np.inf), np.zeros(len(shift), np.int64), np.zeros(len(shift))
    direction = candidates.turn(shift * (step.std / step.small**2))
    constant = (d * log_ratio - 0.5 * square / step.small**2).astype(np.float32)
    active, block = np.arange(len(shift)), 0
    while len(active):
        left = candidates.arrangements - block % candidates.arrangements
        blocks = min(left, max(1, WIDTH // (BLOCK * len(active))))
        log_w = candidates.weigh(direction[active], curvature, active, block, blocks) + constant[active, None]
        with np.errstate(divide="ignore"):
            able = log_w > (np.log(time[active]) - best[active])[:, None]
        able[:, -1] = True  # its time is that at which the next block starts
        row, column = np.nonzero(able)
        first, steps = np.searchsorted(row, np.arange(len(active))), column + 1
        steps[1:] -= steps[:-1].copy()
        steps[first] = column[first] + 1
        waits = source.standard_gamma(steps)
        times = waits.cumsum()
        times += (time[active] - times[first] + waits[first])[row]
        place = block * BLOCK + column
        score = np.where(place < most[active[row]], np.log(times) - log_w[row, column], np.inf)
        winner = np.lexsort((score, row))[first]
        better = score[winner] < best[active]
        best[active[better]], chosen[active[better]] = score[winner[better]], place[winner[better]]
        time[active], block = times[np.append(first[1:], len(row)) - 1], block + blocks
        done = (block * BLOCK >= most[active]) | (np.log(time[active]) - highest[active] >= best[active])
        active = active[~done]
    return chosen, float(kl.sum())


class NumberModel:
    """Adaptive probabilities of numbers: the length of n + 1 in bits by counts, its other bits uniform."""

    def __init__(self) -> None:
        self.spent = 0.0
        """Bits of all numbers so far."""
        self._counts: dict[int, Floats] = {}

    def encode(self, encoder: stream.queue.RangeEncoder, numbers: Ints, bits: float) -> None:
        """Encode numbers.

        Args:
            encoder: The encoder of the stream.
            numbers: Whole numbers from 0 on: (B,).
            bits: The bits that each is expected to take.
        """
        length, table = np.floor(np.log2(numbers + 1.0)).astype(np.int32), self._table(bits)
        encoder.encode(length, stream.model.Categorical(table, perfect=False))
        for k in np.unique(length[length > 0]):
            rest = (numbers[length == k] + 1 - (1 << int(k))).astype(np.int32)
            encoder.encode(rest, stream.model.Uniform(1 << int(k)))
        self._learn(length, table)

    def decode(self, decoder: stream.queue.RangeDecoder, count: int, bits: float) -> Ints:
        """Decode numbers.

        Args:
            decoder: The decoder of the stream.
            count: Their number B.
            bits: The bits that each is expected to take.

        Returns:
            The numbers: (B,).
        """
        table = self._table(bits)
        length = decoder.decode(stream.model.Categorical(table, perfect=False), count)
        numbers: Ints = (1 << length.astype(np.int64)) - 1
        for k in np.unique(length[length > 0]):
            rows = length == k
            numbers[rows] += decoder.decode(stream.model.Uniform(1 << int(k)), int(rows.sum()))
        self._learn(length, table)
        return numbers

    def _table(self, bits: float) -> Floats:
        """Counts of each length, at first those of 16 numbers of a typical distribution."""
        start = 1.0 / (1.0 + np.exp((np.arange(MAX_LOG2 + 1) - bits - 4.0) / 1.2))
        return self._counts.setdefault(round(bits), 16.0 * start / start.sum())

    def _learn(self, length: NDArray[np.int32], table: Floats) -> None:
        self.spent += float((length - np.log2(table[length] / table.sum())).sum())
        np.add.at(table, length, 1.0)
