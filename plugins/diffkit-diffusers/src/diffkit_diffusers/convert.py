"""Checkpoints of improved- and guided-diffusion (.pt) as run directories."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from torch import Tensor

from diffkit import Run, UsageError, load_recipe
from diffkit.runs import adopt

from .openai import Heads, openai_weights, shown
from .recipe_text import adopted, name_of, recipe_text
from .refusal import inexpressible

WORKER = Path(__file__).with_name("convert_worker.py")
LARGEST = 8 << 30
ROOM = 256 << 20
SECONDS = 1200.0
KEPT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")


@dataclass(frozen=True)
class Training:
    """What a checkpoint does not say of its training: the flags that the authors' scripts were called with."""

    steps: int = 1000
    schedule: Literal["linear", "cosine"] = "linear"
    predicts: Literal["eps", "x0"] = "eps"
    rescaled_time: bool = True


HEADS, TRAINING = Heads(), Training()


def read_pickled(checkpoint: Path | str, *, largest: int = LARGEST) -> dict[str, Tensor]:
    """The tensors of a .pt file, read by `convert_worker` in a process with limits: three times the file and 256 MiB.

    Raises UsageError DK082 where the file is larger than `largest` bytes, or holds anything but tensors.
    """
    source = Path(checkpoint)
    if not source.is_file():
        raise _refused(source, "there is no such file")
    size = source.stat().st_size
    if size > largest:
        raise _refused(source, f"it has {size} bytes, more than the {largest} allowed")
    with tempfile.TemporaryDirectory(prefix="diffkit-convert-") as folder:
        target = Path(folder) / "weights.safetensors"
        command = [sys.executable, "-I", str(WORKER), str(source.resolve()), str(target), str(3 * size + ROOM)]
        environment = {name: os.environ[name] for name in KEPT if name in os.environ} | {"OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise _refused(source, "reading it took too long") from error
        if done.returncode or not target.is_file():
            said = done.stderr[-4096:].decode("utf-8", "replace").strip().splitlines()
            reason = "".join(c for c in said[-1] if c.isprintable())[:300] if said else ""
            raise _refused(source, reason or f"the process that read it ended with status {done.returncode}")
        return load_file(target)


def import_checkpoint(
    checkpoint: Path | str,
    out: Path | str,
    *,
    size: int,
    heads: Heads = HEADS,
    training: Training = TRAINING,
    data: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> Run:
    """Convert a U-Net of improved- or guided-diffusion for images of size x size into the new run directory `out`.

    What the weights show is read off them; `heads` and `training` are what they do not show. A label has a null class
    besides, whose vector is 0: it was never trained. Raises UsageError DK080, DK081, DK082, RecipeError,
    CheckpointError.
    """
    pickled = read_pickled(checkpoint)
    found = shown(pickled, size, heads)
    weights = openai_weights(pickled, found.layout, heads)
    network: dict[str, Any] = {"name": "unet", **found.options}
    if training.rescaled_time and training.steps != 1000:
        network = {"name": "scaled-time", "factor": 1000 / training.steps, "inner": network}
        weights = {f"inner.{name}": tensor for name, tensor in weights.items()}
    inside = found.channels[0]
    shape = {"channels": inside, "size": [size, size], **({"classes": found.labels} if found.labels else {})}
    text = recipe_text(
        f"Weights of improved- or guided-diffusion, converted from {Path(checkpoint).name}",
        adopted(
            name_of(Path(out)),
            data or {"name": "shape-only", **shape},
            _sections(training, found.channels),
            network,
        ),
    )
    return adopt(load_recipe(text, overrides), out, weights, f"OpenAI {Path(checkpoint).name}")


def _sections(training: Training, channels: tuple[int, int]) -> dict[str, Any]:
    inside, outside = channels
    if outside not in (inside, 2 * inside):
        raise inexpressible(f"a model with {inside} channels in and {outside} out is no plain denoiser")
    schedule: dict[str, Any] = {"name": training.schedule, "steps": training.steps}
    if training.schedule == "linear":  # the authors' ends keep sum(beta) whatever the number of steps
        schedule |= {"beta_start": 0.1 / training.steps, "beta_end": 20.0 / training.steps}
    learned = outside == 2 * inside
    return {
        "schedule": schedule,
        "parameterization": {"name": "learned-range", "inner": training.predicts} if learned else training.predicts,
        "sample": {
            "sampler": {"name": "ancestral", "variance": "learned" if learned else "large"},
            "guidance": ["clip"],
        },
    }


def _refused(source: Path, reason: str) -> UsageError:
    return UsageError(
        f"{source} cannot be converted: {reason}", code="DK082", fix="only state dicts of tensors are read"
    )
