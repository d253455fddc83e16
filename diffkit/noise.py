"""Random numbers as functions of a seed and names, so that only the seed has to be stored.

Training draws blocks of 64 rows, each a function of (seed, stream, step, block), from which ranks and micro-batches
take their rows. Sampling draws one stream per (seed, sample, step, draw), so that sample i of a seed is the same in
every batch and on any number of devices. A resumed run needs no generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import ArgumentError, UsageError

BLOCK_ROWS = 64
"""Rows of the global batch that are drawn together."""
NUMBERS_AHEAD = 1 << 16
"""How many numbers `SampleNoise` draws ahead per sample (at least one step, at most 64)."""


def key(*parts: str | int) -> int:
    """Return a 63-bit number that depends on all parts, their types and their order."""
    escaped = (str(part).replace("\\", "\\\\").replace("/", "\\/") for part in parts)
    text = "/".join(f"{type(part).__name__}:{name}" for part, name in zip(parts, escaped))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(device: torch.device | str, *parts: str | int) -> torch.Generator:
    """Return a generator on `device` for the stream that `parts` name: the seed first, then names and counts."""
    return torch.Generator(device=device).manual_seed(key(*parts))


@dataclass
class RandomStreams:
    """The random numbers of the rows from `start` on in the global batch of one training step.

    The numbers of a row are the same for any number of ranks and any size of micro-batches. Each stream can be drawn
    once; drawing it again raises UsageError, since the same numbers would be returned.
    """

    seed: int
    step: int
    total: int
    start: int = 0
    _drawn: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def rows(self, start: int) -> RandomStreams:
        """Return the streams of the same step for the micro-batch that starts at row `start`."""
        return RandomStreams(self.seed, self.step, self.total, start)

    def normal(self, stream: str, like: Tensor) -> Tensor:
        """Draw standard normal numbers in the shape of `like`: (B, *S), in the dtype of `like`, at least float32."""
        numbers = self._rows(stream, like, like.shape[1:], torch.randn)
        return numbers.to(torch.promote_types(like.dtype, torch.float32))

    def uniform(self, stream: str, like: Tensor, count: int | None = None) -> Tensor:
        """Draw uniform numbers in [0, 1) for the B rows of `like`.

        Args:
            stream: Name of the stream, unique within the step.
            like: A tensor of B rows on the device to draw on.
            count: Numbers per row; None (default) for one number per row, without a second axis.

        Returns:
            float32 numbers: (B,), or (B, count).

        Raises:
            UsageError: The stream was drawn before, or the rows lie outside the batch.
        """
        return self._rows(stream, like, () if count is None else (count,), torch.rand)

    def batch_uniform(self, stream: str, like: Tensor) -> Tensor:
        """Draw uniform numbers in [0, 1) for the whole global batch: (total,) float32, on the device of `like`."""
        self._register(stream)
        source = generator(like.device, self.seed, "train-batch", stream, self.step)
        return torch.rand(self.total, generator=source, device=like.device)

    def _rows(self, stream: str, like: Tensor, shape: Sequence[int], draw: Callable[..., Tensor]) -> Tensor:
        self._register(stream)
        end = self.start + len(like)
        if end > self.total:
            raise UsageError(
                f"rows {self.start} to {end - 1} are outside the batch of {self.total}",
                fix="pass the size of the global batch as `total` of RandomStreams",
            )
        numbers = torch.empty(len(like), *shape, device=like.device)
        for block in range(self.start // BLOCK_ROWS, (end - 1) // BLOCK_ROWS + 1):
            source = generator(like.device, self.seed, "train", stream, self.step, block)
            first = block * BLOCK_ROWS
            drawn = draw((min(BLOCK_ROWS, self.total - first), *shape), generator=source, device=like.device)
            low, high = max(self.start, first), min(end, first + len(drawn))
            numbers[low - self.start : high - self.start] = drawn[low - first : high - first]
        return numbers

    def _register(self, stream: str) -> None:
        if stream in self._drawn:
            raise UsageError(
                f"stream {stream!r} was drawn twice in step {self.step}, which would return the same numbers again",
                fix="use a different name for each draw, or keep the tensor of the first draw",
            )
        self._drawn.add(stream)


class SampleNoise:
    """Noise for sampling: draw k in step j of sample i depends on (seed, i, j, k) only.

    Args:
        seed: Any integer.
        samples: Indices of the samples in the batch, such as range(64).
    """

    def __init__(self, seed: int, samples: Iterable[int]) -> None:
        if not isinstance(samples, Iterable):
            raise ArgumentError.of(
                "SampleNoise(seed, samples): argument 2 (`samples`)", "indices of samples", samples, "pass range(count)"
            )
        self.seed = seed
        self.samples = tuple(samples)
        self._streams: dict[tuple[int, torch.device, torch.Size], _Stream] = {}

    def initial(self, shape: Sequence[int], device: torch.device | str = "cpu", stream: str = "start") -> Tensor:
        """Draw the standard normal noise to start from, one stream per sample.

        Args:
            shape: Shape of one sample.
            device: Device of the noise.
            stream: Name of the stream; default that of the start.

        Returns:
            (B, *shape) float32.
        """
        rows = [
            torch.randn(tuple(shape), generator=generator(device, self.seed, stream, i), device=device)
            for i in self.samples
        ]
        return torch.stack(rows)

    def at_step(self, step: int) -> Callable[[Tensor], Tensor]:
        """Return the function noise(x) -> z of step `step`, which draws new noise in the shape of x at each call."""
        draw = 0

        def noise(x: Tensor) -> Tensor:
            nonlocal draw
            at = (draw, x.device, x.shape[1:])
            draw += 1
            if len(x) != len(self.samples):
                raise ValueError(f"SampleNoise was made for {len(self.samples)} samples, got a batch of {len(x)}")
            if at not in self._streams:
                self._streams[at] = _Stream(self.seed, self.samples, *at)
            return self._streams[at].block(step).to(x.dtype)

        return noise


class _Stream:
    """Draw number `draw` of every step: one generator per sample, and a buffer of steps drawn ahead."""

    def __init__(self, seed: int, samples: Sequence[int], draw: int, device: torch.device, shape: torch.Size) -> None:
        self._parts = (seed, samples, draw)
        self._device, self._shape = device, shape
        self._ahead = max(1, min(64, NUMBERS_AHEAD // max(1, shape.numel())))
        self._restart()

    def _restart(self) -> None:
        seed, samples, draw = self._parts
        self._generators = [generator(self._device, seed, "step", i, draw) for i in samples]
        self._next = 0
        self._buffer = torch.empty(0)

    def block(self, step: int) -> Tensor:
        """Return the numbers of step `step`: (B, *shape)."""
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
