"""Fine-tuning: the weights of another run as the start of this one."""

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
    """Start from the newest whole checkpoint of another run, `run` being its directory or its name under runs/.

    Its first average is taken where it has one, else the raw weights; optimizer, step and averages start anew.
    Returns the step of that checkpoint. Raises UsageError where there is no such run, CheckpointError where its
    network is another one, with every difference listed.
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
        f"train.init: there is no run {str(run)!r} with checkpoints",
        code="DK055",
        fix="give the run's directory, or its name under runs/ (diffkit ls runs)",
    )


def _weights(directory: Path) -> tuple[dict[str, Tensor], int]:
    """The weights of the newest whole checkpoint, and its step."""
    store = CheckpointStore(directory)
    state = store.load({}, must=True)
    assert state is not None
    averages = list(TrainerState.from_json(state.state).powers)
    group = f"ema-{averages[0]}" if averages else "network"
    found = store.load({group: None}, must=True)
    assert found is not None
    return found.tensors[group], found.step


def refuse_misfit(found: Mapping[str, Tensor], own: Mapping[str, Tensor], whence: str) -> None:
    """Raise CheckpointError, with what differs, unless names and shapes of the weights are those of the network."""
    differences = _differences(found, own)
    if differences:
        rest = len(differences) - MAX_DIFFERENCES
        raise CheckpointError(
            f"the weights of {whence} do not fit this network: {len(differences)} tensors differ",
            code="DK603",
            fix="use the network section of the recipe that they were trained with, and data of the same shape",
            notes=[*differences[:MAX_DIFFERENCES], *([f"and {rest} more"] if rest > 0 else [])],
        )


def _differences(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    out = [f"{name}: {tuple(found[name].shape)} there, none here" for name in found.keys() - own.keys()]
    out += [f"{name}: none there, {tuple(own[name].shape)} here" for name in own.keys() - found.keys()]
    out += [
        f"{name}: {tuple(found[name].shape)} there, {tuple(own[name].shape)} here"
        for name in found.keys() & own.keys()
        if found[name].shape != own[name].shape
    ]
    return sorted(out)
