"""Folders of diffusers: config.json beside diffusion_pytorch_model.safetensors, alone or within a pipeline.

Nothing in them is executed: pickled weights (.bin, .pt) are refused, and class names are compared, not imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import not_a_model

CONFIG, SCHEDULER, INDEX = "config.json", "scheduler_config.json", "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class Folder:
    """The folder of a model, and that of its scheduler in a pipeline."""

    model: Path
    scheduler: Path | None = None

    def config(self) -> dict[str, Any]:
        """Read the model's configuration."""
        return read_json(self.model / CONFIG)

    def scheduler_config(self) -> dict[str, Any]:
        """Read the scheduler's configuration; empty without a scheduler."""
        return read_json(self.scheduler / SCHEDULER) if self.scheduler else {}

    def weights(self) -> dict[str, Tensor]:
        """Read the tensors. Raises UsageError DK080 if they are missing, damaged or pickled."""
        path = self.model / WEIGHTS
        if not path.is_file():
            raise not_a_model(
                f"{self.model} holds no {WEIGHTS}",
                fix="save the model with safe_serialization=True; pickled weights (.bin) are never opened",
            )
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise not_a_model(f"{path} cannot be read: {error}") from error


def open_folder(path: Path | str) -> Folder:
    """Find the model in a folder, or in a pipeline with `unet` and `scheduler`. Raises UsageError DK080."""
    root = Path(path)
    if (root / CONFIG).is_file():
        return Folder(root, root if (root / SCHEDULER).is_file() else None)
    if (root / INDEX).is_file() and (root / "unet" / CONFIG).is_file():
        beside = root / "scheduler"
        return Folder(root / "unet", beside if (beside / SCHEDULER).is_file() else None)
    raise not_a_model(f"{root} does not hold a diffusers model", fix=f"name a folder that holds {CONFIG} or {INDEX}")


def write_model(folder: Path, class_name: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a model as diffusers does.

    Args:
        folder: must be empty, or not exist.
        class_name: the model's class in diffusers.
        config: arguments of the class.
        weights: the state dict of the model.

    Raises:
        UsageError: DK080, the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise not_a_model(f"{folder} is not empty", fix="choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, class_name, config)
    # safetensors rejects tensors that share memory, such as the pieces of a fused layer
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})


def write_json(path: Path, class_name: str, config: Mapping[str, Any]) -> None:
    """Write a configuration as diffusers does.

    Args:
        path: the file; missing folders are created.
        class_name: the class in diffusers.
        config: the arguments of the class.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"_class_name": class_name, **config}, indent=2, sort_keys=True) + "\n", "utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of at most 1 MiB. Raises UsageError DK080."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
        found = json.loads(data) if len(data) <= MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise not_a_model(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise not_a_model(f"{path} does not hold a JSON object of at most {MAX_JSON_BYTES >> 20} MiB")
    return found
