"""The sampling stage: the samples, the picture of them, and a few of them on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
import torch
from torch import Tensor
from ..denoiser import Denoiser
from ..errors import ResourceError, UsageError
from ..guidance import guide
from ..level import Level
from ..recipe import Assembly
from ..sampler import StepInfo, Sampler
import time
from dataclasses import dataclass, field
from ..codec import Codec
from ..estimate import Estimate
from ..noise import SampleNoise
from ..sampler import StepInfo, Sampler, sample
from ..runtime.memory import keep_memory
import io
from collections.abc import Mapping
import numpy as np
from numpy.typing import NDArray
from ..data import Data
from ..report import pictures
from ..storage import atomic


SAMPLES, TRAJECTORY, PICTURE = "samples.npz", "trajectory.npz", "grid.png"
FRAMES = 12


def labels_for(assembly: Assembly, count: int, labels: Sequence[int] | None = None) -> Tensor | None:
    """The classes of `count` samples: `labels`, else those of the recipe, repeated; else all classes in turn.

    Raises UsageError for `labels` that the network does not have; K of 0..K is the null class.
    """
    classes = assembly.shape.classes
    if classes is None:
        if labels:
            raise UsageError("this run has no classes to choose from", code="DK019", fix="leave labels out")
        return None
    if unknown := [label for label in labels or () if not 0 <= label <= classes]:
        raise UsageError(
            f"this run has no class {unknown[0]}", code="DK019", fix=f"choose of 0..{classes - 1}; {classes} is none"
        )
    wanted = labels if labels is not None else assembly.recipe.sample.labels
    cycle = torch.tensor(list(wanted) if wanted else range(classes))
    return cycle.repeat(count // len(cycle) + 1)[:count]


def plan(
    assembly: Assembly,
    *,
    count: int,
    seed: int,
    sampler: Sampler[Any] | None = None,
    levels: Sequence[Level] | None = None,
    labels: Sequence[int] | None = None,
    batch_size: int | None = None,
    first: int = 0,
) -> Plan:
    """How `count` samples are drawn, by default as the recipe says."""
    return Plan(
        sampler or assembly.sampler,
        levels or assembly.levels(),
        assembly.spec.shape,
        count,
        seed,
        batch_size or assembly.recipe.sample.batch_size,
        labels_for(assembly, count, labels),
        first,
    )


def guided(assembly: Assembly, denoise: Denoiser) -> Denoiser:
    """The denoiser under the guidance of the recipe."""
    return guide(denoise, assembly.guidance)


def draw_and_save(
    assembly: Assembly,
    denoise: Denoiser,
    directory: Path,
    device: torch.device,
    on_step: Callable[[StepInfo], None],
) -> Drawn:
    """Draw the samples that the recipe asks for and write them below `directory`."""
    chosen = plan(assembly, count=assembly.recipe.sample.count, seed=assembly.recipe.seed)
    drawn = draw(guided(assembly, denoise), chosen, assembly.codec, device, frames=FRAMES, on_step=on_step)
    save(assembly, drawn, directory)
    return drawn


def save(assembly: Assembly, drawn: Drawn, directory: Path) -> None:
    """samples.npz (values as the data stores them), grid.png and trajectory.npz, in `directory` of a run that exists.

    Raises ResourceError where the disk refuses.
    """
    arrays = {"x": assembly.data.to_storage(drawn.x).numpy(), "view": viewable(assembly.data, drawn.x)}
    if drawn.labels is not None:
        arrays["labels"] = drawn.labels.numpy()
    try:
        directory.mkdir(exist_ok=True)
        save_npz(directory / SAMPLES, arrays)
        save_png(directory / PICTURE, assembly.data, drawn.x)
        if drawn.frames is not None:
            save_npz(directory / TRAJECTORY, _trajectory(assembly, drawn.frames))
    except OSError as error:
        raise ResourceError(
            f"cannot write to {directory}: {error.strerror}",
            code="DK412",
            fix="free some space and run the same command again; training is done and saved",
        ) from error


def _trajectory(assembly: Assembly, taken: Frames) -> dict[str, Any]:
    times = [float(assembly.schedule.time(level)) for level in taken.levels]
    return {
        "x": frames(assembly.data, taken.x),
        "x0": frames(assembly.data, taken.x0),
        "t": torch.tensor(times).numpy(),
    }


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

    def __call__(self, step: StepInfo) -> None:
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
    on_step: Callable[[StepInfo], None] | None = None,
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

    def watch(step: StepInfo) -> None:
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
                x = noisiest.add_noise(codec.encode(given[rows.start : rows.stop].to(device)), x)
        cond = {} if plan.labels is None else {"label": plan.labels[rows.start : rows.stop].to(device)}
        z = sample(conditioned(denoise, **cond), plan.sampler, plan.levels, x, noise=noise, on_step=watch)
        with torch.no_grad():
            parts.append(codec.decode(z.float()).cpu())
        if on_batch is not None:
            on_batch(rows.stop, plan.count)
    return Drawn(torch.cat(parts), plan.labels, nfe, time.monotonic() - began, recorder.frames(codec))


Array = NDArray[Any]


def is_image(data: Data) -> bool:
    """Whether examples can be shown: two dimensions of 1 or 3 channels."""
    return len(data.spec.size) == 2 and data.spec.channels in (1, 3)


def viewable(data: Data, x: Tensor) -> Array:
    """Examples as a report shows them: (N, H, W, C) uint8 for images of 1 or 3 channels, else (N, D) float.

    x: (N, C, *S), decoded.
    """
    if is_image(data):
        return pictures.as_images(x)
    return x.float().flatten(1).numpy()


def frames(data: Data, x: Tensor) -> Array:
    """The same for frames (K, B, C, *S) -> (K, B, H, W, C) or (K, B, D)."""
    rows = viewable(data, x.flatten(0, 1))
    return rows.reshape(*x.shape[:2], *rows.shape[1:])


def save_png(path: Path, data: Data, x: Tensor) -> bool:
    """A grid of images; False where the data is none."""
    shown = viewable(data, x)
    if shown.ndim == 4:
        atomic.replace(path, pictures.png(pictures.image_grid(shown)))
        return True
    return False


def save_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Named arrays in one uncompressed file, replaced whole."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic.replace(path, buffer.getvalue())


def load_npz(path: Path) -> dict[str, Array]:
    """The arrays of a file that `save_npz` wrote; nothing in it is ever unpickled."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
