"""Drawing samples: batches of numbered samples through the one sampling loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..codec import Codec
from ..denoiser import Denoiser
from ..estimate import Estimate
from ..level import Level
from ..noise import SampleNoise
from ..sampler import Progress, Sampler, sample
from ..train.allocator import keep_memory

OnBatch = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """How to draw: `levels` from noisy to clean, `shape` of one z: (C, *S), `labels` for all samples or none."""

    sampler: Sampler[object]
    levels: Sequence[Level]
    shape: tuple[int, ...]
    count: int
    seed: int = 0
    batch_size: int = 64
    labels: Tensor | None = None
    first: int = 0


@dataclass(frozen=True)
class Frames:
    """A few samples on the way: x and the estimates of x0, (K, B, C, *S) each, at `levels`, noisiest first."""

    x: Tensor
    x0: Tensor
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Drawn:
    """Samples after the codec: (N, C, *S) float32 on the CPU; evaluations each of them took; seconds in all."""

    x: Tensor
    labels: Tensor | None
    nfe: int
    seconds: float
    frames: Frames | None = None


def conditioned(denoise: Denoiser, **cond: Tensor) -> Denoiser:
    """The denoiser with its conditions filled in, as the sampling loop calls it."""
    if not cond:
        return denoise

    def bound(x: Tensor, level: Level, /, **more: Tensor) -> Estimate:
        return denoise(x, level, **{**cond, **more})

    return bound


@dataclass
class _Recorder:
    """Keeps x and x0 of the first `rows` samples at about `count` steps, the first and the last included."""

    rows: int
    count: int
    x: list[Tensor] = field(default_factory=list)
    x0: list[Tensor] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)

    def __call__(self, step: Progress) -> None:
        wanted = {1 + round(k * (step.count - 1) / max(1, self.count - 1)) for k in range(self.count)}
        if step.index in wanted and step.estimate is not None:
            self.x.append(step.x[: self.rows].float().cpu())
            self.x0.append(step.estimate.x0[: self.rows].float().cpu())
            self.levels.append(step.t)

    def frames(self, codec: Codec) -> Frames | None:
        if not self.x:
            return None
        return Frames(
            torch.stack([codec.decode(x) for x in self.x]),
            torch.stack([codec.decode(x) for x in self.x0]),
            tuple(self.levels),
        )


def draw(
    denoise: Denoiser,
    plan: Plan,
    codec: Codec,
    device: torch.device | str,
    *,
    given: Tensor | None = None,
    frames: int = 0,
    on_batch: OnBatch | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Drawn:
    """Draw `plan.count` samples; sample i of a seed is the same whatever the batch size.

    x starts as sigma z at the noisiest level. `given`: (N, C, *S) examples to start from instead, which become
    alpha z(x) + sigma eps there: image to image. `frames` records so many steps of the first batch. `on_batch` is
    told how many samples are done. Raises whatever `on_step` raises, such as a request to stop.
    """
    began = time.monotonic()
    keep_memory(torch.device(device))
    noisiest = plan.levels[0]
    recorder = _Recorder(rows=8, count=frames)
    parts: list[Tensor] = []
    nfe = 0

    def watch(step: Progress) -> None:
        nonlocal nfe
        nfe = step.nfe
        if frames and not parts:
            recorder(step)
        if on_step is not None:
            on_step(step)

    for start in range(0, plan.count, plan.batch_size):
        rows = range(start, min(start + plan.batch_size, plan.count))
        noise = SampleNoise(plan.seed, [plan.first + i for i in rows])
        x = noise.initial(plan.shape, device)
        if given is None:
            x = float(noisiest.sigma) * x
        else:
            with torch.no_grad():
                x = noisiest.mix(codec.encode(given[rows.start : rows.stop].to(device)), x)
        cond = {} if plan.labels is None else {"label": plan.labels[rows.start : rows.stop].to(device)}
        z = sample(conditioned(denoise, **cond), plan.sampler, plan.levels, x, noise=noise, on_step=watch)
        with torch.no_grad():
            parts.append(codec.decode(z.float()).cpu())
        if on_batch is not None:
            on_batch(rows.stop, plan.count)
    return Drawn(torch.cat(parts), plan.labels, nfe, time.monotonic() - began, recorder.frames(codec))
