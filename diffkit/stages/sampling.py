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
from ..sampler import Progress, Sampler
from .drawing import Drawn, Frames, Plan, draw
from .pictures import frames, save_npz, save_png, viewable

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
    on_step: Callable[[Progress], None],
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
    arrays = {"x": assembly.data.encode(drawn.x).numpy(), "view": viewable(assembly.data, drawn.x)}
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
