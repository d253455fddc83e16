"""Folders of diffusers: config.json beside the weights `diffusion_pytorch_model`, alone or within a pipeline.

All forms of weights that diffusers loads are read: one file or shards with an index, variants such as fp16, attention
layers under their names of 2022, safetensors or pickles. Nothing in a folder is executed: `pickled` reads a .bin in a
separate process, and class names are compared, not imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from diffkit.errors import ResourceError

from .errors import not_a_model
from .pickled import read_pickled

CONFIG, SCHEDULER, INDEX = "config.json", "scheduler_config.json", "model_index.json"
STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
FORMS = ("safetensors.index.json", "safetensors", "bin.index.json", "bin")  # the order in which diffusers looks
OLD_ATTENTION = re.compile(r"(.*\battentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
MAX_JSON_BYTES = 1 << 20
WRITABLE = "make the folder writable, free some space, or choose another place"


@dataclass(frozen=True)
class Folder:
    """The folder of a model, and that of its scheduler in a pipeline; `stem` begins the names of the weights."""

    model: Path
    scheduler: Path | None = None
    stem: str = STEM

    def config(self) -> dict[str, Any]:
        """Read the model's configuration."""
        return read_json(self.model / CONFIG)

    def scheduler_config(self) -> dict[str, Any]:
        """Read the scheduler's configuration; empty without a scheduler."""
        return read_json(self.scheduler / SCHEDULER) if self.scheduler else {}

    def weights(self, variant: str | None = None, *, pickles: bool = True) -> dict[str, Tensor]:
        """Read the tensors under their present names.

        Args:
            variant: part of the file's name, such as "fp16"; None takes the weights without a variant, or the only
                variant.
            pickles: whether a .bin is read if there are no safetensors.

        Returns:
            The tensors by name.

        Raises:
            UsageError: DK080, they are missing, damaged or a pickle that is not wanted; DK082, a pickle holds anything
                but tensors.
        """
        path = self._weights_path(variant)
        if not pickles and ".bin" in path.suffixes:
            fix = "convert it once: load the model in diffusers and call its save_pretrained"
            raise not_a_model(f"{path} is a pickle, and only safetensors are read", fix=fix)
        found = _read_shards(path) if path.suffix == ".json" else _read_tensors(path)
        return {OLD_ATTENTION.sub(_new_name, name): tensor for name, tensor in found.items()}

    def _weights_path(self, variant: str | None) -> Path:
        found = _weights_by_variant(self.model, self.stem)
        if variant is None and "" not in found and len(found) == 1:
            (variant,) = found
        if (variant or "") not in found:
            missing = f"{self.stem}.{variant}.safetensors" if variant else f"{self.stem}.safetensors"
            fixes = [f"--variant {name} (`variant: {name}` in a recipe)" if name else "no variant" for name in found]
            raise not_a_model(
                f"{self.model} holds no {missing}",
                fix=f"choose {' or '.join(sorted(fixes))}"
                if fixes
                else f"load the model in its library and call its save_pretrained({str(self.model)!r})",
            )
        return found[variant or ""]


def _weights_by_variant(folder: Path, stem: str) -> dict[str, Path]:
    """Find the weights of each variant; the name of a variant stands before or after any other part of a file's name.

    Shards of an index have a number in their names, and are skipped.
    """
    found: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.glob(f"{stem}.*")):
        parts = path.name.split(".")[1:]
        variants = [part for part in parts if part not in ("safetensors", "bin", "index", "json")]
        form = ".".join(part for part in parts if part not in variants)
        if len(variants) > 1 or form not in FORMS or "-of-" in path.name or not path.is_file():
            continue
        name = "".join(variants)
        found[name] = min(found.get(name, (len(FORMS), path)), (FORMS.index(form), path))
    return {name: path for name, (_, path) in found.items()}


def _read_shards(index: Path) -> dict[str, Tensor]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise not_a_model(f"{index} holds no weight_map from tensors to files")
    found: dict[str, Tensor] = {}
    for file in sorted(set(names.values())):
        if Path(file).name != file:
            raise not_a_model(f"{index} names {file[:120]!r}, which is not a file in the same folder")
        found |= _read_tensors(index.parent / file)
    absent = sorted(names.keys() - found.keys())
    if absent:
        raise not_a_model(f"{absent[0][:120]} of {index} is in none of its files", fix="copy the whole folder again")
    return found


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_pickled(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise not_a_model(f"{path} cannot be read: {error}", fix="copy the file again") from error


def _new_name(old: re.Match[str]) -> str:
    return f"{old[1]}.{NEW_ATTENTION[old[2]]}.{old[3]}"


def open_folder(path: Path | str, part: str = "unet") -> Folder:
    """Find the model in a folder, or in a pipeline with the folders `part` and `scheduler`. Raises UsageError DK080."""
    root = Path(path)
    if (root / CONFIG).is_file():
        return Folder(root, root if (root / SCHEDULER).is_file() else None)
    if (root / INDEX).is_file() and (root / part / CONFIG).is_file():
        beside = root / "scheduler"
        return Folder(root / part, beside if (beside / SCHEDULER).is_file() else None)
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
        ResourceError: DK412, it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise not_a_model(f"{folder} is not empty, or is a file", fix="choose another folder")
    write_json(folder / CONFIG, class_name, config)
    write_weights(folder / WEIGHTS, weights)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a safetensors file for PyTorch; after a crash it is either whole or absent.

    Args:
        path: the file; missing folders are created.
        weights: the tensors by name.

    Raises:
        ResourceError: DK412, it cannot be written.
    """
    # safetensors rejects tensors that share memory, such as the pieces of a fused layer
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
    _write(path, save(own, metadata={"format": "pt"}))


def _write(path: Path, data: bytes) -> None:
    """Write a file under another name, synced, and rename it. Raises ResourceError DK412."""
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        message = f"cannot write {path}: {error.strerror or error}"
        raise ResourceError(message, code="DK412", fix=WRITABLE) from error


def write_json(path: Path, class_name: str, config: Mapping[str, Any]) -> None:
    """Write a configuration as diffusers does.

    Args:
        path: the file; missing folders are created.
        class_name: the class in diffusers.
        config: the arguments of the class.

    Raises:
        ResourceError: DK412, it cannot be written.
    """
    text = json.dumps({"_class_name": class_name, **config}, indent=2, sort_keys=True) + "\n"
    _write(path, text.encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of at most 1 MiB. Raises UsageError DK080."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
        found = json.loads(data) if len(data) <= MAX_JSON_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        fix = "copy the file again" if path.exists() else "name a folder that save_pretrained wrote"
        raise not_a_model(f"{path} cannot be read: {error}", fix=fix) from error
    if not isinstance(found, dict):
        raise not_a_model(f"{path} does not hold a JSON object of at most {MAX_JSON_BYTES >> 20} MiB")
    return found
