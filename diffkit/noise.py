"""Noise streams: every random number is a function of the seed and a name, counted instead of stored.

Training draws one block for each (seed, stream, step), of which ranks and micro-batches take their rows. Sampling
draws for each (seed, sample, step, draw), so sample i of a seed is the same in every batch, on any number of devices.
A resumed run needs no generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

AHEAD = 1 << 16
"""How many numbers are drawn ahead for one sample (at least one step, at most 64)."""


def key(*parts: object) -> int:
    """A 63-bit number that is a function of all parts and nothing else."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(device: torch.device | str, *parts: object) -> torch.Generator:
    """A generator of the stream that `parts` name: seed first, then names and counts."""
    return torch.Generator(device=device).manual_seed(key(*parts))


@dataclass
class RandomStreams:
    """The random numbers of one training step: the rows of `total` examples from `start` on.

    The same (seed, step, stream) gives the same global batch whatever the world size and the micro-batch.
    """

    seed: int
    step: int
    total: int
    start: int = 0
    _blocks: dict[tuple[object, ...], Tensor] = field(default_factory=dict, repr=False)

    def rows(self, start: int) -> RandomStreams:
        """The same step, for the micro-batch that starts at row `start`; blocks drawn before are shared."""
        return RandomStreams(self.seed, self.step, self.total, start, self._blocks)

    def normal(self, stream: str, like: Tensor) -> Tensor:
        """Standard normal, shaped like `like`: (B, *S), drawn in float32."""
        return self._block(stream, "normal", like.shape[1:], like.device)[self.start : self.start + len(like)].to(
            torch.promote_types(like.dtype, torch.float32)
        )

    def uniform(self, stream: str, like: Tensor, count: int | None = None) -> Tensor:
        """Uniform in [0, 1): (B,) float32, or (B, count), for the B examples of `like`."""
        shape = () if count is None else (count,)
        return self._block(stream, "uniform", shape, like.device)[self.start : self.start + len(like)]

    def block(self, stream: str, like: Tensor) -> Tensor:
        """The uniform numbers of the whole global batch: (total,), where a row depends on its neighbours."""
        return self._block(stream, "uniform", (), like.device)

    def _block(self, stream: str, law: str, shape: Sequence[int], device: torch.device) -> Tensor:
        at = (stream, law, tuple(shape), device)
        if at not in self._blocks:
            draw = torch.randn if law == "normal" else torch.rand
            source = generator(device, self.seed, stream, self.step)
            self._blocks[at] = draw((self.total, *shape), generator=source, device=device)
        return self._blocks[at]


class SampleNoise:
    """Noise for sampling: draw k of step j of sample i depends on (seed, i, j, k) only.

    `samples` are the global numbers of the rows of the batch. `initial(shape)` is the x to start from;
    `at_step(j)` is the function noise(x) that a sampler's step j draws from.
    """

    def __init__(self, seed: int, samples: Sequence[int]) -> None:
        self.seed = seed
        self.samples = tuple(samples)
        self._streams: dict[tuple[int, torch.device, torch.Size], _Stream] = {}

    def initial(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal (B, *shape) in float32, one stream for each sample."""
        rows = [
            torch.randn(tuple(shape), generator=generator(device, self.seed, "start", i), device=device)
            for i in self.samples
        ]
        return torch.stack(rows)

    def at_step(self, step: int) -> Callable[[Tensor], Tensor]:
        """noise(x) -> z like x for step `step`, drawn anew at each call."""
        draw = 0

        def noise(x: Tensor) -> Tensor:
            nonlocal draw
            at = (draw, x.device, x.shape[1:])
            draw += 1
            if len(x) != len(self.samples):
                raise ValueError(f"noise for {len(self.samples)} samples was asked for a batch of {len(x)}")
            if at not in self._streams:
                self._streams[at] = _Stream(self.seed, self.samples, *at)
            return self._streams[at].block(step).to(x.dtype)

        return noise


class _Stream:
    """Draw number `draw` of every step: a live generator for each sample, some steps drawn ahead."""

    def __init__(self, seed: int, samples: Sequence[int], draw: int, device: torch.device, shape: torch.Size) -> None:
        self._parts = (seed, samples, draw)
        self._device, self._shape = device, shape
        self._ahead = max(1, min(64, AHEAD // max(1, shape.numel())))
        self._restart()

    def _restart(self) -> None:
        seed, samples, draw = self._parts
        self._generators = [generator(self._device, seed, "step", i, draw) for i in samples]
        self._next = 0
        self._buffer = torch.empty(0)

    def block(self, step: int) -> Tensor:
        """Numbers of step `step`: (B, *shape)."""
        chunk = step // self._ahead
        if chunk < self._next - 1:
            self._restart()
        while self._next <= chunk:
            shape = (self._ahead, *self._shape)
            self._buffer = torch.stack(
                [torch.randn(shape, generator=g, device=self._device) for g in self._generators], dim=1
            )
            self._next += 1
        return self._buffer[step % self._ahead]
