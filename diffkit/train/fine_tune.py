"""Fine-tuning: start from the weights of another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..storage.checkpoint import CheckpointStore
from ..storage.run_directory import RunDirectory
from .state import TrainerState
from .trainer import Trainer

MAX_DIFFERENCES = 8
MAX_CLASSES = 1 << 20


@dataclass(frozen=True)
class InitialWeights:
    """The weights of another run as far as they were taken: `step` of its checkpoint, and a line for each tensor that
    was not taken whole.
    """

    step: int
    differences: tuple[str, ...] = ()


def load_initial(trainer: Trainer, run: str | Path, *, strict: bool = False) -> InitialWeights:
    """Start a trainer from the newest whole checkpoint of another run.

    The weights are its first average, or its raw weights if it has none. Optimizer, step and averages start at zero.
    A tensor of equal name and shape is taken. If one axis differs and counts classes (or classes and the null class),
    the rows of classes that both runs have are taken, by their names, or by their numbers if a run has no names. All
    other tensors keep their initial values.

    Args:
        trainer: a trainer at step 0.
        run: directory of the other run, or its name under runs/.
        strict: refuse weights if a tensor cannot be taken whole. Default: refuse them if less than half of the numbers
            of the network are taken.

    Returns:
        The step of the checkpoint, and the tensors that differ.

    Raises:
        UsageError: there is no such run.
        CheckpointError: its weights do not fit this network; the notes list the differences.
    """
    own = trainer.engine.whole_weights()
    directory = _directory(run)
    found, step = _weights(directory / "checkpoints")
    if strict:
        refuse_misfit(found, own, str(run))
    classes = _class_names(directory), _names(trainer.problem.data.spec.classes, trainer.problem.data.spec.class_names)
    taken: dict[str, Tensor] = {}
    numbers = 0
    for name, tensor in own.items():
        if name in found and found[name].shape == tensor.shape:
            taken[name], count = found[name], tensor.numel()
        else:
            taken[name], count = common_classes(found.get(name), tensor, *classes)
        numbers += count
    if 2 * numbers < sum(tensor.numel() for tensor in own.values()):
        refuse_misfit(found, own, str(run))
    trainer.engine.start_from(taken)
    return InitialWeights(step, tuple(_differences(found, own)))


def common_classes(
    old: Tensor | None, new: Tensor, before: Sequence[str] | None, now: Sequence[str] | None
) -> tuple[Tensor, int]:
    """Take the rows of the classes that two runs have from a tensor with one axis that counts classes.

    Args:
        old: the tensor of the other run; its axis may contain the null class as well.
        new: the tensor of this run.
        before: the classes of the other run.
        now: the classes of this run.

    Returns:
        `new` with these rows, and how many numbers they are: 0 if no axis counts classes in both.
    """
    if old is None or before is None or now is None or old.ndim != new.ndim:
        return new, 0
    axes = [axis for axis in range(new.ndim) if old.shape[axis] != new.shape[axis]]
    extra = old.shape[axes[0]] - len(before) if len(axes) == 1 else -1
    if extra not in (0, 1) or new.shape[axes[0]] != len(now) + extra:
        return new, 0
    pairs = [(before.index(name), place) for place, name in enumerate(now) if name in before]
    pairs += [(len(before), len(now))] * extra
    source, target = torch.tensor(pairs, dtype=torch.long, device=new.device).reshape(-1, 2).unbind(1)
    rows = old.to(new).index_select(axes[0], source)
    return new.index_copy(axes[0], target, rows), rows.numel()


def _class_names(directory: Path) -> list[str] | None:
    """Return the names of the classes of a run; None if it has none, or does not record them."""
    spec = RunDirectory(directory).read_json("data.json").get("spec")
    if not isinstance(spec, dict) or type(spec.get("classes")) is not int:
        return None
    names = spec.get("class_names")
    return _names(min(spec["classes"], MAX_CLASSES), names if isinstance(names, list) else ())


def _names(classes: int | None, names: Sequence[str]) -> list[str] | None:
    """Return the names of classes, or their numbers if they have no names."""
    if classes is None:
        return None
    return [str(name) for name in names] if len(names) == classes else [str(number) for number in range(classes)]


def _directory(run: str | Path) -> Path:
    for path in (Path(run), Path("runs") / run):
        if (path / "checkpoints").is_dir():
            return path
    raise UsageError(
        f"train.init: {str(run)!r} is not a run with checkpoints",
        code="DK055",
        fix="set the directory of the run, or its name under runs/ (diffkit ls runs)",
    )


def _weights(directory: Path) -> tuple[dict[str, Tensor], int]:
    """Return the weights of the newest whole checkpoint, and its step."""
    store = CheckpointStore(directory)
    state = store.load({}, must=True)
    assert state is not None
    averages = list(TrainerState.from_json(state.state).powers)
    group = f"ema-{averages[0]}" if averages else "network"
    found = store.load({group: None}, must=True)
    assert found is not None
    return found.tensors[group], found.step


def refuse_misfit(found: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError unless names and shapes of the weights are those of the network.

    Args:
        found: the weights.
        own: the state dict of the network.
        source: name of their origin, for the message.

    Raises:
        CheckpointError: the notes list the differences.
    """
    differences = _differences(found, own)
    if differences:
        rest = len(differences) - MAX_DIFFERENCES
        raise CheckpointError(
            f"the weights of {source} do not fit this network: {len(differences)} tensors differ",
            code="DK603",
            fix="use the network section of the recipe that they were trained with, and similar data",
            notes=[*differences[:MAX_DIFFERENCES], *([f"and {rest} more"] if rest > 0 else [])],
        )


def _differences(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    out = [
        f"{name}: shape {tuple(found[name].shape)} in the weights, absent from this network"
        for name in found.keys() - own.keys()
    ]
    out += [
        f"{name}: absent from the weights, shape {tuple(own[name].shape)} here" for name in own.keys() - found.keys()
    ]
    out += [
        f"{name}: shape {tuple(found[name].shape)} in the weights, {tuple(own[name].shape)} here"
        for name in found.keys() & own.keys()
        if found[name].shape != own[name].shape
    ]
    return sorted(out)
