"""Load a trained run: its recipe, and its weights into a copy of the recipe's objects that nothing else changes.

A run also records the data, the source of the codec, and the plugin files that it was made with. It keeps a copy of
each plugin file and never loads it by itself. Loading a run requires that its records still apply.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..codec import Codec, CodecRecord
from ..data import DataSpec
from ..errors import CheckpointError, PluginError, UsageError, plain
from ..host import registry
from ..metric import TrainedModel
from ..recipe.assembly import Assembly, Parts, require_diffusion
from ..recipe.load import of_preset
from ..recipe.signature import Resolved
from ..recipe.spec import DiffusionRecipe, Recipe
from ..recipe.validate import load_recipe
from ..recipe.yaml import parse
from ..storage.atomic import read_bounded
from ..storage.checkpoint import CheckpointStore
from ..storage.run_directory import ENVIRONMENT, RunDirectory
from ..train.ema import Profile, power_of, reconstruct, stored_profiles
from .evaluation import RunStore, model_setting
from .training import problem_of

DATA_FILE, CODEC_FILE = "data.json", "codec.json"
MAX_LENGTH = 1 << 20
PLUGIN_FOLDER, PLUGIN_FILES = "plugins", "files"
"""Where a run keeps copies of plugin files, and the key of environment.json with their digests."""
MAX_PLUGIN_BYTES = 4 << 20
_PLUGIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,250}\.py")

WIDTH = "width:"
HOME = torch.device("cpu")
"""Where the parts of a model lie that wait for their turn."""
CALLS = ("forward",)
"""The methods of networks and conditioners that compute on the device of the model."""
CODEC_CALLS = ("posterior", "encode", "decode")


class DataRecord(BaseModel):
    """The content of data.json: the properties of the data that sampling depends on. `spec` is None in runs of earlier
    versions.
    """

    model_config = ConfigDict(frozen=True)

    spec: DataSpec | None = None

    @field_validator("spec")
    @classmethod
    def _require_possible(cls, spec: DataSpec | None) -> DataSpec | None:
        if spec is not None and not all(1 <= length <= MAX_LENGTH for length in (*spec.shape, spec.classes or 1)):
            raise ValueError(f"channels, sizes and classes must be 1 to {MAX_LENGTH}")
        return spec

    @classmethod
    def read(cls, directory: RunDirectory) -> DataRecord:
        """Return the record of a run. Raises CheckpointError if the file is damaged."""
        return directory.read_record(DATA_FILE, cls, "restore the file, or delete it if the data is in its place")

    def write(self, directory: RunDirectory) -> None:
        """Write data.json. Raises ResourceError if it cannot be written."""
        directory.write_json(DATA_FILE, self.model_dump(mode="json"))


class SourceRecord(BaseModel):
    """The content of codec.json: the source of the weights of the codec; `record` is None for a codec without one."""

    model_config = ConfigDict(frozen=True)

    record: CodecRecord | None = None

    @classmethod
    def read(cls, directory: RunDirectory) -> SourceRecord:
        """Return the record of a run. Raises CheckpointError if the file is damaged."""
        return directory.read_record(CODEC_FILE, cls, "restore the file")

    def require_same(self, present: CodecRecord | None) -> None:
        """Raise CheckpointError DK607 if the codec was another one when the run started."""
        if self.record is None or present is None or self.record == present:
            return
        then, now = ({"sha256": one.sha256, **one.options} for one in (self.record, present))
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        raise CheckpointError(
            "the source of the codec has changed since the run was started",
            code="DK607",
            fix="restore the source of the codec; to train on the new latents, pass another --out",
            notes=[f"{key}: {then.get(key)!s:.200} then, {now.get(key)!s:.200} now" for key in changed],
        )

    def write(self, directory: RunDirectory) -> None:
        """Write codec.json. Raises ResourceError if it cannot be written."""
        if self.record is not None:
            directory.write_json(CODEC_FILE, self.model_dump(mode="json"))


def read_plugin_files(recipe: Recipe) -> dict[str, bytes]:
    """Return the content of the plugin files that a recipe uses, by file name."""
    used = {name for component in recipe.components for name in _plugins(component)}
    paths = [Path(one.origin) for one in registry().plugins if one.name in used and one.is_file]
    return {path.name: read_bounded(path, MAX_PLUGIN_BYTES) for path in paths}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def keep_plugin_files(directory: RunDirectory, files: dict[str, bytes]) -> None:
    """Write copies into a run directory. Raises ResourceError if they cannot be written."""
    for name, content in files.items():
        directory.write_bytes(f"{PLUGIN_FOLDER}/{name}", content)


def require_plugin_files(directory: RunDirectory) -> None:
    """Require that the plugin files of a run are loaded, and warn if one has changed since.

    Raises:
        PluginError: DK207, a file is not loaded. No code of the run directory is executed.
    """
    recorded: object = {}
    with contextlib.suppress(CheckpointError):  # without this file, errors name the unknown components instead
        recorded = directory.read_json(ENVIRONMENT).get(PLUGIN_FILES)
    for name, digest in recorded.items() if isinstance(recorded, dict) else ():
        if not _PLUGIN_NAME.fullmatch(name):
            continue
        kept = directory.path / PLUGIN_FOLDER / name
        plugin = name.removesuffix(".py").replace("_", "-").strip("-").lower()
        loaded = next((one for one in registry().plugins if one.name == plugin and one.status == "ok"), None)
        if loaded is None:
            raise PluginError(
                f"{directory.path} was made with the plugin file {name}, which is not loaded",
                code="DK207",
                fix=f"pass the file: -P {name}; in Python: diffkit.host.load_file({name!r})",
                notes=[f"the run keeps a copy: {kept}; read it first, because it is code"],
            )
        if loaded.is_file and digests({name: read_bounded(Path(loaded.origin), MAX_PLUGIN_BYTES)})[name] != digest:
            message = f"{loaded.origin} has changed since {directory.path} was made; see {kept}"
            warnings.warn(plain(message), stacklevel=2)


def _plugins(component: Resolved) -> Iterator[str]:
    """Yield the plugins of a component and of its own components."""
    yield component.spec.plugin
    for value in component.arguments.values():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Resolved):
                yield from _plugins(one)


def effective_recipe(directory: RunDirectory, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a run; `train.schedule` and `train.warmup` of earlier versions become `train.lr_schedule`,
    and `data.label_dropout` becomes `data.condition_dropout`.
    """
    if other := [text for text in overrides if not text.strip().startswith("sample.")]:
        fix = "set a key of `sample`, such as --set sample.steps=20, or run a recipe with the other value"
        raise UsageError(f"{other[0]!r} cannot be set: the run is trained", code="DK017", fix=fix)
    tree = parse(directory.effective_text(), str(directory.effective)).plain()
    train, data = (tree.get(key) if isinstance(tree, dict) else None for key in ("train", "data"))
    require_plugin_files(directory)
    known: dict[str, Any] = {"spec": DataRecord.read(directory).spec, "record": SourceRecord.read(directory).record}
    if not isinstance(tree, dict) or not isinstance(train, dict) or not isinstance(data, dict):
        return load_recipe(directory.effective, overrides, **known)
    overrides = of_preset(tree, overrides)
    earlier = {"schedule", "warmup"} & train.keys(), "label_dropout" in data
    if not any(earlier):
        return load_recipe(directory.effective, overrides, **known)
    if "label_dropout" in data:
        data["condition_dropout"] = data.pop("label_dropout")
    if not earlier[0]:
        return load_recipe(tree, overrides, **known)
    options = train.pop("schedule", {"name": "constant"})
    if options["name"] == "constant":
        options = {"name": "constant"}
    train["lr_schedule"] = {**options, "warmup": train.pop("warmup", 0)}
    return load_recipe(tree, overrides, **known)


@dataclass(frozen=True)
class TrainedWeights:
    """The objects of a recipe with trained weights, in evaluation mode, and the training step of the weights.

    Data, metrics and trackers are shared with the assembly they were copied from; every object that holds weights, or
    a reference to an object that does, is a copy.
    """

    parts: Parts
    step: int

    @property
    def assembly(self) -> Assembly:
        """The objects of a diffusion. Raises UsageError if the run is of another task."""
        return require_diffusion(self.parts, "this run")


def group_of(parts: Parts, weights: str) -> str:
    """Return the name of the group of stored tensors that `weights` selects.

    Raises:
        UsageError: The run has no weights of this name.
    """
    if weights == "raw":
        return "network"
    if weights.startswith(WIDTH):
        return weights
    names = [average.name for average in parts.recipe.train.ema]
    if weights == "ema" and "ema" not in names:
        return f"ema-{names[0]}" if names else "network"
    if weights not in names:
        choices = list(dict.fromkeys(["raw", "ema", *names]))
        raise _no_weights(f"this run has no weights {weights!r}", "choose one of them", choices)
    return f"ema-{weights}"


def load_weights(
    directory: RunDirectory, parts: Parts, weights: str = "ema", adapters: Sequence[str] = ()
) -> TrainedWeights:
    """Copy `parts` and load weights of the newest intact checkpoint into the copy.

    Warns about each newer checkpoint that is damaged.

    Args:
        directory: The run.
        parts: The objects of its recipe. They are not changed.
        weights: "raw", "ema" (the first average), the name of an average, or "width:W", the power average of relative
            width W that is reconstructed from the stored power averages.
        adapters: Files to merge in float32, before the network has the precision of sampling; see `with_adapters`.

    Returns:
        The copy, on the device of `parts`.

    Raises:
        CheckpointError: No checkpoint can be loaded.
        UsageError: The run neither stores these weights nor can reconstruct them.
    """
    group = group_of(parts, weights)
    power = _power(group.removeprefix(WIDTH)) if group.startswith(WIDTH) else None
    groups = [group] if power is None else _power_groups(parts)
    copied = _copy(parts)
    network, components = copied.network, problem_of(copied).learned()
    expected: dict[str, Mapping[str, Tensor] | None] = dict.fromkeys(groups, network.state_dict())
    if components.state_dict():
        expected["components"] = components.state_dict()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    found = CheckpointStore(directory.checkpoints, on_event=_warn).load(expected, device, must=True)
    assert found is not None
    chosen = found.tensors[groups[0]]
    if power is not None:  # Karras et al. 2024 (arXiv:2312.02696), sec. 3.2
        chosen = reconstruct(stored_profiles(directory.checkpoints), Profile(found.step, power))
    network.load_state_dict(chosen)
    if components.state_dict():
        components.load_state_dict(found.tensors["components"])
    for module in (network, components):
        module.eval()
    _merge(copied, adapters)
    if isinstance(copied, Assembly) and (name := copied.recipe.sample.precision) != "float32":
        network.to(getattr(torch, name))
    return TrainedWeights(copied, found.step)


def offloads(recipe: Recipe) -> bool:
    """Return whether the parts of a model take turns on the device of sampling."""
    return isinstance(recipe, DiffusionRecipe) and recipe.sample.offload


def trained_model(
    trained: TrainedWeights, directory: RunDirectory, device: torch.device, *, writes: bool
) -> TrainedModel:
    """Return the model of a diffusion for metrics.

    Args:
        trained: Its weights.
        directory: The run, which keeps what metrics store.
        device: The device to compute on.
        writes: Whether this process stores it.

    Returns:
        The model.
    """
    assembly = trained.assembly
    return TrainedModel(
        model_setting(assembly),
        assembly.model,
        assembly.codec,
        device=device,
        batch_size=assembly.recipe.evaluate.batch_size or assembly.recipe.sample.batch_size,
        weights=digest_of(assembly),
        store=RunStore(directory, writes=writes),
    )


def offloaded(trained: TrainedWeights, device: torch.device) -> TrainedWeights:
    """Return `trained`, whose parts now take turns on the device if the recipe states it."""
    if offloads(trained.parts.recipe):
        Turns(trained.assembly, device)
    return trained


class AdapterFile(dict[str, Tensor]):
    """The tensors of a file by name, and `metadata`, the texts in its header."""

    metadata: Mapping[str, str]

    @classmethod
    def read(cls, path: str) -> AdapterFile:
        """Read a safetensors file.

        Raises:
            UsageError: DK018, it is missing or is not safetensors.
            CheckpointError: DK603, there are no tensors, or a number is infinite or not a number.
        """
        fix = "name a .safetensors file; a pickle is not opened"
        if Path(path).is_dir():
            raise _no_weights(f"the adapter {path} is a folder", fix)
        try:
            with safe_open(path, "pt") as stream:
                found = cls({name: stream.get_tensor(name) for name in stream.keys()})  # noqa: SIM118, not a mapping
                found.metadata = stream.metadata() or {}
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise _no_weights(f"the adapter {path} cannot be read: {error}", fix) from error
        if not found:
            raise CheckpointError(f"the adapter {path} has no tensors", code="DK603", fix="export the adapter again")
        if wrong := [name for name, one in found.items() if not one.double().isfinite().all()]:
            raise CheckpointError(
                f"the adapter {path} has numbers that are infinite or not a number",
                code="DK603",
                fix="copy the file again, or train it again with a smaller learning rate",
                notes=[name[:120] for name in wrong[:8]],
            )
        return found


@runtime_checkable
class Adaptable(Protocol):
    """A network or a conditioner whose weights adapters change, such as low-rank updates."""

    def adapt(self, weights: Mapping[str, Tensor], factor: float) -> Collection[str]:
        """Merge the tensors of a file that belong to this object, times `factor`, and return their names.

        `weights` is an `AdapterFile`, whose `metadata` is the header of the file.
        """


def with_adapters(trained: TrainedWeights, adapters: Sequence[str]) -> TrainedWeights:
    """Copy trained weights and merge adapters into the copy.

    Args:
        trained: The weights; they are not changed.
        adapters: Files of tensors (.safetensors), each with a weight after a colon if it is not 1: "a.safetensors:0.8".

    Returns:
        The copy.

    Raises:
        UsageError: DK018, a file is missing or is not safetensors, its weight is not finite, or nothing in this run
            takes adapters.
        CheckpointError: DK603, a file has no tensors, or one that belongs to no part of the run, does not fit it, or is
            not finite.
    """
    copied = _copy(trained.parts)
    _merge(copied, adapters)
    return TrainedWeights(copied, trained.step)


def _merge(trained: Parts, adapters: Sequence[str]) -> None:
    if not adapters:
        return
    copied = require_diffusion(trained, "this run")
    parts: list[object] = [copied.network, *copied.conditions.conditioners.values()]
    takers = [part for part in parts if isinstance(part, Adaptable)]
    if not takers:
        name = copied.recipe.network.name
        raise _no_weights(f"network {name} takes no adapters", "leave --adapter out, or choose another run")
    for text in adapters:
        path, factor = _adapter(text)
        weights = AdapterFile.read(path)
        try:
            used = {name for part in takers for name in part.adapt(weights, factor)}
        except CheckpointError as error:
            message = f"the adapter {path} does not fit: {error.message}"
            raise CheckpointError(message, code=error.code, fix=error.fix, notes=error.notes) from error
        if unknown := sorted(weights.keys() - used):
            raise CheckpointError(
                f"the adapter {path} has {len(unknown)} tensors that belong to no part of this run",
                code="DK603",
                fix="use it with the model that it was trained on",
                notes=[name[:120] for name in unknown[:8]],
            )


class Turns:
    """The parts of a model with weights, which take turns on a device: the one that computes lies there.

    The network, the conditioners and the codec lie in the memory of the CPU until they are called. Nulls of
    conditioners are computed there, so that guidance does not move them in every step.

    Args:
        assembly: The objects, whose calls are changed.
        device: The device to compute on.
    """

    def __init__(self, assembly: Assembly, device: torch.device) -> None:
        self.device = device
        self.present: nn.Module | None = None
        for part in (assembly.codec, assembly.network, *assembly.conditions.conditioners.values()):
            if isinstance(part, nn.Module) and part.state_dict():
                part.to(HOME)
                for name in CODEC_CALLS if isinstance(part, Codec) else CALLS:
                    own = getattr(part, name)
                    setattr(part, name, update_wrapper(partial(self._call, part, own), own))

    def _call(self, part: nn.Module, own: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        tensors = [one for one in (*arguments, *named.values()) if isinstance(one, Tensor)]
        if any(one.is_meta for one in tensors):  # only shapes are wanted
            return own(*arguments, **named)
        if self.present is not part:
            if self.present is not None:
                self.present.to(HOME)
            part.to(self.device)
            self.present = part
        return own(*(one.to(self.device) if isinstance(one, Tensor) else one for one in arguments), **named)


def _adapter(text: str) -> tuple[str, float]:
    """Return the file and the weight of FILE[:WEIGHT]. Raises UsageError DK018 if the weight is not a finite number."""
    path, colon, stated = text.rpartition(":")
    try:
        factor = float(stated) if colon and path else None
    except ValueError:
        factor = None
    if factor is None and not path.endswith(".safetensors"):
        return text, 1.0
    if factor is None or not math.isfinite(factor):
        raise _no_weights(f"the weight of the adapter {path} is {stated}", "state a finite number: FILE:0.8")
    return path, factor


def digest_of(parts: Parts) -> str:
    """Return a hash of all weights of the objects of a recipe: 64 hex digits."""
    found = hashlib.sha256()
    for part in (parts.network, problem_of(parts).learned()):
        for name, tensor in sorted(part.state_dict().items()):
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(data)
    return found.hexdigest()


def _copy(parts: Parts) -> Parts:
    """Return a deep copy. Objects without weights are shared, so that a data set is not held twice."""
    shared = (parts.recipe, parts.data, *parts.metrics, *parts.callbacks, *parts.trackers)
    return copy.deepcopy(parts, {id(one): one for one in shared})


def _power(width: str) -> float:
    """Return the exponent of the power average of this relative width."""
    try:
        return power_of(float(width))
    except ValueError as error:
        fix = "choose 0 < W < 0.2887, for example width:0.1"
        raise _no_weights(f"{WIDTH}{width} is not the width of a power average", fix) from error


def _power_groups(parts: Parts) -> list[str]:
    """Return the groups of the power averages, from which others are reconstructed."""
    found = [f"ema-{average.name}" for average in parts.recipe.train.ema if average.power is not None]
    if not found:
        fix = "train with train.ema: [{name: wide, power: 6.94}, {name: narrow, power: 17}] and a larger train.keep"
        raise _no_weights("this run stores no power average, so no other width can be reconstructed", fix)
    return found


def _no_weights(message: str, fix: str, choices: Sequence[str] = ()) -> UsageError:
    return UsageError(message, code="DK018", choices=choices, fix=fix)


def _warn(name: str, fields: Mapping[str, object]) -> None:
    warnings.warn(plain(f"the checkpoint of step {fields['step']} is skipped: {fields['reason']}"), stacklevel=2)
