"""Fine-tuning: start from the weights of another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..storage.checkpoint import CheckpointStore
from .state import TrainerState
from .trainer import Trainer

MAX_DIFFERENCES = 8


def load_initial(trainer: Trainer, run: str | Path) -> int:
    """Start a trainer from the newest whole checkpoint of another run.

    The weights are its first average, or its raw weights if it has none. Optimizer, step and averages start at zero.

    Args:
        trainer: a trainer at step 0.
        run: directory of the other run, or its name under runs/.

    Returns:
        The step of the checkpoint.

    Raises:
        UsageError: there is no such run.
        CheckpointError: its weights do not fit this network; the notes list the differences.
    """
    found, step = _weights(_directory(run))
    own = trainer.engine.network.state_dict()
    refuse_misfit(found, own, str(run))
    trainer.engine.start_from(found)
    return step


def _directory(run: str | Path) -> Path:
    for path in (Path(run), Path("runs") / run):
        if (path / "checkpoints").is_dir():
            return path / "checkpoints"
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
            fix="use the network section of the recipe that they were trained with, and data of the same shape",
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
