"""The dry run: the components of a recipe and what a run of it would need. Nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..recipe.assembly import Assembly, assemble_parts
from ..recipe.contents import named
from ..recipe.effective import effective_yaml, recipe_hash
from ..recipe.spec import Recipe
from ..runtime.distributed import resolve_device
from ..train.cost import cost_of_run
from .sampling import evaluations_of_a_step
from .training import make_trainer


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
        "images per second": f"{found.images_per_second:.4g}",
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
