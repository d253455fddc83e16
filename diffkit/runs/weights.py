"""Load the weights of a run into a copy of the recipe's objects that nothing else changes, and merge adapters."""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..codec import Codec
from ..errors import CheckpointError, UsageError, plain
from ..metric import TrainedModel
from ..recipe.assembly import Assembly, Parts, place, require_diffusion
from ..recipe.spec import DiffusionRecipe, Recipe
from ..storage.checkpoint import CheckpointStore
from ..storage.run_directory import RunDirectory
from ..train.ema import Profile, power_of, reconstruct, stored_profiles
from .evaluation import RunStore, model_setting
from .training import problem_of

WIDTH = "width:"
HOME = torch.device("cpu")
"""Where the parts of a model lie that wait for their turn."""
CALLS = ("forward",)
"""The methods of networks and conditioners that compute on the device of the model."""
CODEC_CALLS = ("posterior", "encode", "decode")


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
    directory: RunDirectory,
    parts: Parts,
    device: torch.device,
    weights: str = "ema",
    adapters: Sequence[str] = (),
) -> TrainedWeights:
    """Copy `parts` and load weights of the newest intact checkpoint into the copy.

    Warns about each newer checkpoint that is damaged.

    Args:
        directory: The run.
        parts: The objects of its recipe. They are not changed.
        device: The device of the copy. Only the copy moves there, in the precision of sampling; with `sample.offload`
            its parts take turns there.
        weights: "raw", "ema" (the first average), the name of an average, or "width:W", the power average of relative
            width W that is reconstructed from the stored power averages.
        adapters: Files to merge in float32, before the network has the precision of sampling; see `with_adapters`.

    Returns:
        The copy.

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
    home = next((p.device for p in network.parameters()), HOME)
    found = CheckpointStore(directory.checkpoints, on_event=_warn).load(expected, home, must=True)
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
    if offloads(copied.recipe):
        Turns(require_diffusion(copied, "this run"), device)
    else:
        place(copied, device)
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
