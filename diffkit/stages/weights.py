"""Weights of a finished or stopped run, from its newest whole checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import nn

from ..errors import UsageError
from ..recipe import Assembly
from ..train.checkpoint import CheckpointStore
from .rundir import RunDirectory


def load_weights(
    directory: RunDirectory, assembly: Assembly, weights: str = "ema", device: torch.device | str = "cpu"
) -> int:
    """Fill the network of `assembly` with `weights`: `raw`, `ema` (the first average), or the name of an average.

    Returns the step; warns of each newer checkpoint that is damaged. Raises CheckpointError where no checkpoint loads,
    UsageError for an average that the run has not.
    """
    group = _group(assembly, weights)
    expected: dict[str, Mapping[str, torch.Tensor] | None] = {group: assembly.network.state_dict()}
    components = _components(assembly)
    if components is not None:
        expected["components"] = components.state_dict()
    store = CheckpointStore(directory.checkpoints, on_event=_warn)
    found = store.load(expected, device, must=True)
    assert found is not None
    assembly.network.load_state_dict(found.tensors[group])
    if components is not None:
        components.load_state_dict(found.tensors["components"])
    assembly.network.to(device).eval()
    return found.step


def _warn(name: str, fields: Mapping[str, object]) -> None:
    warnings.warn(f"the checkpoint of step {fields['step']} is passed over: {fields['reason']}", stacklevel=2)


def _components(assembly: Assembly) -> nn.Module | None:
    """What besides the network was trained or remembers."""
    from .training import task_of

    learned = task_of(assembly).learned()
    return learned if learned.state_dict() else None


def _group(assembly: Assembly, weights: str) -> str:
    if weights == "raw":
        return "network"
    names = [average.name for average in assembly.recipe.train.ema]
    if weights == "ema" and "ema" not in names:
        if not names:
            return "network"
        weights = names[0]
    if weights not in names:
        raise UsageError(
            f'this run has no weights "{weights}"', code="DK018", choices=["raw", "ema", *names], fix="choose one"
        )
    return f"ema-{weights}"
