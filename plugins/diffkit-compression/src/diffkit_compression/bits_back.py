"""Lossless coding: bits-back with asymmetric numeral systems, in the order of Bit-Swap.

An example pops z_1 of q(z_1 | x0), pushes x0 given z_1, pops z_2 of q(z_2 | z_1), pushes z_1 given z_2, ..., and pushes
z_N under the prior: its bits are those of the variational bound, and only one layer of latents needs bits that are
there before. Examples are coded in batches, which grow with the bits that are on the stack.
Source: Townsend et al. 2019 (arXiv:1901.04866); Kingma et al. 2019 (arXiv:1905.06845) for the order. Differs: latents
lie on the lattice of step std(z_i | z_{i-1}), not on bins of equal probability under the prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffkit import Denoiser, transition
from diffkit.likelihood import Chain, Discretised

from .stack import Floats, Ints, Stack, Words

Progress = Callable[[int, int], None]
MAX_BATCH, MAX_NUMBERS = 256, 1 << 20
"""The largest batch: of examples, and of numbers in them."""
STEP = 1.0
"""Step of the lattice of z_i in units of std(z_i | z_{i-1}). The initial bits are log2(sqrt(2 pi e) / STEP) per
dimension; with 2 they are half, but the latents of a trained model cost 1 % more."""
MARGIN = 1.05
"""Bits that a batch finds on the stack, in units of what the batches before have needed per example."""


@dataclass(frozen=True)
class Coded:
    """A stream of examples.

    words     the data: (n,) uint32
    kept      words of the ground below them
    batches   number of examples of each batch, in the order of coding
    net       bits by which the stack has grown
    """

    words: Words
    kept: int
    batches: tuple[int, ...]
    net: int


class BitsBack:
    """The coder of a model: pushes batches of examples on a stack, and pops them.

    Args:
        denoise: The model.
        chain: The layers and their variances.
        bins: Number of values of the data.
        shape: Shape of an example: (C, *S).
        device: Device of the model; default the CPU.
    """

    def __init__(
        self, denoise: Denoiser, chain: Chain, bins: int, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.denoise, self.chain, self.bins = denoise, chain, bins
        self.shape, self.device = tuple(shape), device
        n = len(chain)
        spread = [float(transition.spread(chain.level(i), chain.level(i - 1))) for i in range(1, n + 1)]
        self._steps = [0.0, *(STEP * one for one in spread)]

    @property
    def max_batch(self) -> int:
        """The largest number of examples in a batch."""
        return max(1, min(MAX_BATCH, MAX_NUMBERS // math.prod(self.shape)))

    @property
    def ground(self) -> int:
        """The number of known words below the data, more than any batch consumes."""
        return math.prod(self.shape) * self.max_batch * 8 // 32 + 64

    def encode(self, values: Tensor, on_progress: Progress = lambda done, count: None) -> Coded:
        """Encode examples.

        Args:
            values: Whole numbers, 0 to bins - 1: (N, C, *S).
            on_progress: Called after each batch with the numbers of examples that are done, and of all.

        Returns:
            The stream.
        """
        stack, batches, done, need = Stack(self.ground), list[int](), 0, math.inf
        while done < len(values):
            size = max(1, min(self.max_batch, int(stack.bits / need), len(values) - done))
            before = stack.bits
            lowest = self.push(stack, values[done : done + size])
            need = max(1.0, MARGIN * (before - lowest) / size)
            batches.append(size)
            done += size
            on_progress(done, len(values))
        kept, words = stack.split()
        return Coded(words, kept, tuple(batches), stack.bits)

    def decode(self, coded: Coded, on_progress: Progress = lambda done, count: None) -> Tensor:
        """Decode a stream.

        Args:
            coded: The stream.
            on_progress: Called after each batch with the numbers of examples that are done, and of all.

        Returns:
            Whole numbers: (N, C, *S) int64.

        Raises:
            ValueError: The stream was not made by this coder.
        """
        stack = Stack(self.ground, coded.words, coded.kept)
        found, done = list[Tensor](), 0
        for size in reversed(coded.batches):
            found.append(self.pop(stack, size))
            done += size
            on_progress(done, sum(coded.batches))
        if not stack.is_ground:
            raise ValueError("bits are left after the last example")
        return torch.cat(found[::-1])

    def push(self, stack: Stack, values: Tensor) -> int:
        """Push a batch of examples: (B, C, *S) whole numbers; return the lowest number of bits on the way."""
        chain, n = self.chain, len(self.chain)
        x0 = (2.0 * values.double() / (self.bins - 1) - 1.0).flatten()
        below = float(chain.levels[-1].alpha) * x0.numpy()
        points: Ints = np.zeros(0, np.int64)
        lowest = stack.bits
        for i in range(1, n + 1):
            previous = points
            points = stack.pop_normal(self._forward(i, below), 1.0 / STEP, escapes=False)
            lowest = min(lowest, stack.bits)
            below = self._value(i, points)
            mean, std = self._reverse(i, below)
            if i == 1:
                stack.push(values.flatten().numpy(), self._table(mean, std))
            else:
                stack.push_normal(previous, mean, std)
        stack.push_normal(points, np.zeros(len(points)), self._prior_std)
        return lowest

    def pop(self, stack: Stack, count: int) -> Tensor:
        """Pop a batch of `count` examples: (B, C, *S) int64."""
        chain, n = self.chain, len(self.chain)
        size = count * math.prod(self.shape)
        points = stack.pop_normal(np.zeros(size), self._prior_std)
        for i in range(n, 0, -1):
            mean, std = self._reverse(i, self._value(i, points))
            if i == 1:
                found = stack.pop(self._table(mean, std))
                below = float(chain.levels[-1].alpha) * (2.0 * found / (self.bins - 1) - 1.0)
            else:
                found = stack.pop_normal(mean, std)
                below = self._value(i - 1, found)
            stack.push_normal(points, self._forward(i, below), 1.0 / STEP, escapes=False)
            points = found
        return torch.from_numpy(points).reshape(count, *self.shape)

    @property
    def _prior_std(self) -> float:
        return float(self.chain.levels[0].scale) / self._steps[-1]

    def _value(self, i: int, points: Ints) -> Floats:
        """The values of z_i at points of its lattice."""
        values: Floats = points.astype(np.float64) * self._steps[i]
        return values

    def _forward(self, i: int, below: Floats) -> Floats:
        """The mean of q(z_i | z_{i-1}) in steps of the lattice of z_i; its standard deviation is 1 / STEP."""
        return below * (float(transition.decay(self.chain.level(i), self.chain.level(i - 1))) / self._steps[i])

    def _reverse(self, i: int, z: Floats) -> tuple[Floats, float | Floats]:
        """Mean and standard deviation of the model of z_{i-1} given z_i, in steps of its lattice; of x0 if i = 1."""
        at = torch.from_numpy(z).reshape(-1, *self.shape)
        with torch.no_grad():
            estimate = self.denoise(at.to(self.device, torch.float32), self.chain.level(i))
        std = self.chain.std(i, estimate)
        spread = float(std) if not isinstance(std, Tensor) else std.double().cpu().expand(at.shape).flatten().numpy()
        x0 = estimate.x0.double().cpu()
        if i == 1:
            return x0.flatten().numpy(), spread
        mean, _ = self.chain.posterior(i, at, x0)
        return mean.flatten().numpy() / self._steps[i - 1], spread / self._steps[i - 1]

    def _table(self, mean: Floats, std: float | Floats) -> Floats:
        spread = torch.from_numpy(std) if isinstance(std, np.ndarray) else std
        found: Floats = Discretised(self.bins).table(torch.from_numpy(mean), spread).numpy()
        return found
