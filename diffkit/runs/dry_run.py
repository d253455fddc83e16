"""The dry run: the components of a recipe, and what a run of it would cost: memory, arithmetic, time and disk space.

The cost is measured by a few training steps. Nothing is written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..recipe.assembly import Assembly, assemble_parts
from ..recipe.contents import named
from ..recipe.effective import effective_yaml, recipe_hash
from ..recipe.spec import Recipe
from ..runtime.distributed import resolve_device
from ..train.engine import Engine
from ..train.trainer import Trainer
from .sampling import evaluations_of_a_step
from .training import make_trainer

STEPS = 5
ENCODED = "; faster in the run, which reads kept latents where these steps encode examples"
BUDGET = 10.0
"""Seconds that the timed steps may take."""


def dry_run(recipe: Recipe, out: Path | None = None, device: str = "auto") -> dict[str, Any]:
    """Measure five training steps of a recipe.

    Args:
        recipe: The recipe.
        out: The run directory, for the free disk space; by default below runs/.
        device: Device to compute on.

    Returns:
        Facts by name: components, parameters, memory, FLOPs, speed, time, disk.

    Raises:
        DiffkitError: An error that a run would raise before its first step; ResourceError if five steps do not fit into
        memory.
    """
    chosen = resolve_device(device)
    parts = assemble_parts(recipe, chosen)
    settings = recipe.train
    trainer = make_trainer(parts, chosen)
    trainer.engine.fit()
    found = cost_of_run(trainer)
    seconds = found.seconds(settings.steps, settings.batch_size)
    disk = found.checkpoint * (settings.keep + 1)
    free = shutil.disk_usage(_existing(out or Path("runs"))).free
    return {
        **{path: f"{one.name}   ({one.plugin.label})" for path, one in named(effective_yaml(recipe))},
        "recipe hash": recipe_hash(recipe)[:16],
        "device": str(chosen),
        "precision": trainer.engine.precision.name,
        "data": parts.data.summary,
        "training examples": len(parts.data.split("train")),
        "held-out examples": len(parts.data.split("held-out")),
        "shape of codes" if recipe.task == "codec" else "shape of an example": parts.spec.shape,
        "parameters": found.parameters,
        "memory": f"{_mega(found.memory)}: {_mega(found.state)} state, {_mega(found.activations)} activations",
        "FLOPs per image": f"{found.flops / 1e9:.4g} G, forward and backward",
        "images per second": f"{found.images_per_second:.4g}{ENCODED if parts.codec.cache else ''}",
        "time": f"{_duration(seconds)} for {settings.steps} steps of {settings.batch_size}",
        **(_evaluations(parts) if isinstance(parts, Assembly) else {}),
        "disk": f"{disk / 1e6:.1f} MB for {settings.keep} checkpoints, {free / 1e9:.1f} GB free",
    }


def _evaluations(assembly: Assembly) -> dict[str, Any]:
    """Return the evaluations of the network for one sample."""
    levels = assembly.levels()
    nfe, guided = assembly.sampler.nfe(len(levels) - 1), evaluations_of_a_step(assembly, levels[len(levels) // 2])
    return {"evaluations per sample": "depends on the data" if nfe is None else nfe * guided}


def _mega(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _duration(seconds: float) -> str:
    """Format seconds in the two largest units."""
    units = ("d", 86400.0, "h", 3600.0), ("h", 3600.0, "min", 60.0), ("min", 60.0, "s", 1.0)
    for name, size, smaller, least in units:
        if seconds >= size:
            return f"{int(seconds // size)} {name} {int(seconds % size // least)} {smaller}"
    return f"{seconds:.1f} s"


@dataclass(frozen=True)
class Cost:
    """The cost of a training.

    Attributes:
        parameters: number of weights that are trained.
        state: bytes of weights, gradients, optimizer, averages and data in memory.
        activations: bytes that the backward pass needs at the peak of a step.
        flops: floating-point operations of one image, forward and backward.
        images_per_second: speed of the training.
        checkpoint: bytes of one checkpoint.
    """

    parameters: int
    state: int
    activations: int
    flops: int
    images_per_second: float
    checkpoint: int

    @property
    def memory(self) -> int:
        """Bytes at the peak of a step."""
        return self.state + self.activations

    def seconds(self, steps: int, batch_size: int) -> float:
        """Return how many seconds `steps` steps take."""
        return steps * batch_size / self.images_per_second


def cost_of_run(trainer: Trainer, steps: int = STEPS, budget: float = BUDGET) -> Cost:
    """Measure the cost by training: one image to count FLOPs and bytes, then timed steps, critics included. Losses are
    those of the last step, when all have begun. Do not use the trainer afterwards.

    Args:
        trainer: a trainer at step 0.
        steps: number of timed steps, with as many images as one part of the batch.
        budget: seconds that these steps may take; with fewer images if they would take longer.

    Returns:
        The cost.
    """
    engine = trainer.engine
    source = engine.batch_source(0, workers=0)
    part, last = len(engine.parts[0]), max(0, trainer.config.steps - 1)

    def gradient(count: int) -> None:
        engine.gradient(last, source, [range(engine.rows.start, engine.rows.start + count)])
        if engine.critics is not None:
            engine.critics(last, trainer.config.steps)

    gradient(1)
    engine.apply(0)  # creates the state of the optimizer
    held = _Held(engine)
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(held.keep, _same):
        gradient(1)
    single = _time(engine.device, lambda: gradient(1), 1)
    count = max(1, min(part, int(budget / steps / single)))
    gradient(count)
    images = _time(engine.device, lambda: gradient(count), steps) / count
    update = _time(engine.device, lambda: engine.apply(0), 1)
    checkpoint = sum(t.numel() * t.element_size() for group in engine.tensors().values() for t in group.values())
    return Cost(
        parameters=sum(p.numel() for p in engine.trained.values()),
        state=held.state,
        activations=held.activations * part,
        flops=counter.get_total_flops(),
        images_per_second=trainer.config.batch_size / (images * len(engine.rows) + update),
        checkpoint=checkpoint,
    )


class _Held:
    """Sums the memory that autograd keeps for the backward pass, each storage once, without weights and buffers."""

    def __init__(self, engine: Engine) -> None:
        storages = [tensor.untyped_storage() for tensor in engine.stored_tensors()]
        self._known = {storage.data_ptr(): storage.nbytes() for storage in storages}
        gradients = sum(parameter.numel() * parameter.element_size() for parameter in engine.trained.values())
        self.state = sum(self._known.values()) + gradients
        self._seen: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def activations(self) -> int:
        """Bytes that are kept."""
        return sum(self._seen.values())


def _time(device: torch.device, action: Callable[[], object], times: int) -> float:
    """Return the mean seconds of one `action`."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        action()
    _wait(device)
    return max((time.perf_counter() - began) / times, 1e-9)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
