"""Sampling: a plan of samples, and their drawing in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..codec import Codec
from ..conditioner import Conditions
from ..data import LABEL
from ..denoiser import Denoiser, Model
from ..estimate import Estimate
from ..guidance import Guidance, guide
from ..level import Level
from ..noise import SampleNoise
from ..recipe.assembly import Assembly
from ..runtime.memory import enough_memory
from ..runtime.progress import Progress
from ..sampler import Sampler, StepInfo, sample
from .editing import Edit

MAX_FRAMES = 12
"""Steps of the first batch that trajectory.npz holds."""
FRAME_ROWS = 8
"""Samples that each of these steps shows."""

OnStep = Callable[[StepInfo], None]


@dataclass(frozen=True)
class SamplingPlan:
    """A complete plan of samples: a request whose open choices were taken from the recipe.

    Args:
        sampler: The sampler.
        levels: The levels that the sampler visits, noisiest first.
        shape: (C, *S) of one sample before the codec.
        count: Number of samples.
        seed: Seed of the noise.
        batch_size: Samples drawn at a time; the samples do not depend on it.
        conditions: The conditioners of the model.
        given: Raw conditions by name, (count, ...) each; conditions that are absent are null.
        guidance: The guidance.
        first: Number of the first sample among those of the seed.
        start_scale: Scale of the noise to start from, see `sample.start_scale` of a recipe.
        network_time: Whether the network receives whole times, see `sample.network_time`.
        edit: The picture to start from.
        latents: Start noise (count, *shape) in place of that of the seed.
    """

    sampler: Sampler[Any]
    levels: Sequence[Level]
    shape: tuple[int, ...]
    count: int
    seed: int = 0
    batch_size: int = 64
    conditions: Conditions = field(default_factory=Conditions)
    given: Mapping[str, Tensor] = field(default_factory=dict)
    guidance: tuple[Guidance, ...] = ()
    first: int = 0
    start_scale: str = "sigma"
    network_time: str = "exact"
    edit: Edit | None = None
    latents: Tensor | None = None

    def start(self, z: Tensor) -> Tensor:
        """Return the state to start from, given standard normal noise."""
        first = self.levels[0]
        return float(first.sigma if self.start_scale == "sigma" else first.scale) * z


@dataclass(frozen=True)
class SampleTrajectory:
    """A few samples during sampling: x and the estimate of x0, (K, B, C, *S) each, at K `levels`, noisiest first."""

    x: Tensor
    x0: Tensor
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class SampleBatch:
    """Samples in the model's range, x: (N, C, *S) float32 on the CPU, and their raw conditions by name, (N, ...) each.

    `nfe` is the number of evaluations of the network for each sample, `seconds` the time for all of them.
    """

    x: Tensor
    conditions: Mapping[str, Tensor]
    nfe: int
    seconds: float
    trajectory: SampleTrajectory | None = None

    @property
    def labels(self) -> Tensor | None:
        """The classes of the samples: (N,) long, or None without classes."""
        return self.conditions.get(LABEL)


@dataclass
class CountedDenoiser:
    """A denoiser that counts the examples of its calls, so that guidance of two evaluations in one call counts two."""

    denoise: Denoiser
    rows: int = 0

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        self.rows += len(x)
        return self.denoise(x, level, **cond)


def evaluations_of_a_step(assembly: Assembly, level: Level) -> int:
    """Return the evaluations of the network for one example and one estimate at `level`, under the guidance."""
    counted = CountedDenoiser(assembly.model)
    device = next((p.device for p in assembly.network.parameters()), torch.device("cpu"))
    cond = assembly.conditions.complete({}, 1, device)
    with torch.no_grad():
        guide(counted, assembly.guidance)(torch.zeros(1, *assembly.spec.shape, device=device), level, **cond)
    return counted.rows


class Batches(Protocol):
    """A choice of the batches of a plan, whose samples are written to files."""

    def wants(self, index: int) -> bool:
        """Return whether batch number `index` is to be drawn."""

    def write(self, index: int, x: Tensor, nfe: int) -> None:
        """Write the samples of a batch.

        Args:
            index: Number of the batch.
            x: Its samples: (B, C, *S).
            nfe: Number of network calls for each sample.
        """


def draw_samples(
    denoise: Denoiser,
    plan: SamplingPlan,
    codec: Codec,
    device: torch.device | str,
    *,
    x: Tensor | None = None,
    frames: int = 0,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    batches: Batches | None = None,
) -> SampleBatch:
    """Draw the samples of a plan. An exception that `on_step` raises ends it.

    Args:
        denoise: The denoiser, to which the guidance of the plan is applied.
        plan: The plan of the samples.
        codec: Decodes the samples.
        device: Device to compute on.
        x: (N, C, *S) examples to start from instead of noise: z = alpha encode(x) + sigma eps at the noisiest level.
        frames: Number of steps of the first batch to keep, the first and the last included.
        progress: Displays the progress, in samples; a step of a batch counts as its share of them.
        on_step: Called after each step.
        batches: Draw these batches only, and write each of them instead of keeping it.

    Returns:
        The samples that are kept.
    """
    began = time.monotonic()
    if isinstance(denoise, Model) and plan.network_time == "rounded":
        denoise = replace(denoise, rounds_time=True)
    counted = CountedDenoiser(denoise)
    guided = guide(counted, plan.guidance)
    recorder = _Recorder(frames)
    parts: list[Tensor] = []
    nfe, shown = 0, progress or Progress()
    shown.start(0, plan.count)

    def watch(step: StepInfo) -> None:
        nonlocal nfe
        nfe = counted.rows // (rows.stop - rows.start)
        step = replace(step, nfe=nfe)
        shown.advance(rows.start + (rows.stop - rows.start) * step.index // step.count)
        if frames and rows.start == 0:
            recorder(step)
        if on_step is not None:
            on_step(step)

    for index, start in enumerate(range(0, plan.count, plan.batch_size)):
        if batches is not None and not batches.wants(index):
            continue
        rows = slice(start, min(start + plan.batch_size, plan.count))
        noise = SampleNoise(plan.seed, range(plan.first + rows.start, plan.first + rows.stop))
        counted.rows = 0
        z, sampler = _start(plan, codec, rows, noise, device, x)
        given = plan.conditions.fixed({name: raw[rows].to(device) for name, raw in plan.given.items()})
        cond = plan.conditions.complete(given, len(z), device)
        z = sample(partial(guided, **cond), sampler, plan.levels, z, noise=noise, on_step=watch)
        with torch.no_grad():
            drawn = codec.decode(z.float()).cpu()
        if plan.edit is not None:
            drawn = plan.edit.paste(drawn, rows)
        if batches is not None:
            batches.write(index, drawn, nfe)
        else:
            parts.append(drawn)
    x_kept = torch.cat(parts) if parts else torch.empty(0, *plan.shape)
    return SampleBatch(x_kept, plan.given, nfe, time.monotonic() - began, recorder.trajectory(codec, device))


def _start(
    plan: SamplingPlan, codec: Codec, rows: slice, noise: SampleNoise, device: torch.device | str, x: Tensor | None
) -> tuple[Tensor, Sampler[Any]]:
    """Return the state at the first level, and the sampler of a batch, which may hold a part of a picture."""
    eps = noise.initial(plan.shape, device) if plan.latents is None else plan.latents[rows].to(device)
    first = plan.levels[0]
    with torch.no_grad():
        if x is not None:
            return first.add_noise(codec.encode(x[rows].to(device)), eps), plan.sampler
        if plan.edit is None:
            return plan.start(eps), plan.sampler
        z0 = plan.edit.encode(codec, rows, noise.initial(plan.shape, device, "encode"))
        return (
            plan.start(eps) if plan.edit.from_noise else first.add_noise(z0, eps),
            plan.edit.hold(plan.sampler, z0, eps),
        )


@dataclass
class _Recorder:
    """Keeps x and x0 of the first `FRAME_ROWS` samples at about `count` evenly spread steps."""

    count: int
    x: list[Tensor] = field(default_factory=list)
    x0: list[Tensor] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)

    def __call__(self, step: StepInfo) -> None:
        wanted = {1 + round(k * (step.count - 1) / max(1, self.count - 1)) for k in range(self.count)}
        if step.index in wanted and step.estimate is not None:
            self.x.append(step.x[:FRAME_ROWS].float().cpu())
            self.x0.append(step.estimate.x0[:FRAME_ROWS].float().cpu())
            self.levels.append(step.t)

    def trajectory(self, codec: Codec, device: torch.device | str) -> SampleTrajectory | None:
        if not self.x:
            return None
        with torch.no_grad():
            decoded = ([codec.decode(z.to(device)).float().cpu() for z in kept] for kept in (self.x, self.x0))
            x, x0 = map(torch.stack, decoded)
        return SampleTrajectory(x, x0, tuple(self.levels))


def enough_for(plan: SamplingPlan) -> AbstractContextManager[None]:
    """Return a context that reports exhausted memory as an error of the plan."""
    needs = f"{min(plan.count, plan.batch_size)} samples of shape {plan.shape} at a time"
    fix = "lower sample.batch_size in the recipe, or choose another --device"
    return enough_memory(lambda: needs, "sampling", fix)
