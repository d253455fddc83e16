"""Weights of a finished or stopped run, from its newest whole checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
import torch
from torch import nn
from ..errors import UsageError
from ..recipe import Assembly
from ..storage.checkpoint import CheckpointStore
from ..train.ema import Profile, reconstruct, stored_profiles
from ..train.ema import power_of
from ..storage.run_directory import RunDirectory


WIDTH = "width:"


def load_weights(
    directory: RunDirectory, assembly: Assembly, weights: str = "ema", device: torch.device | str = "cpu"
) -> int:
    """Fill the network of `assembly` with `weights`: `raw`, `ema` (the first average), the name of an average, or
    `width:W`, the power average of relative width W that is reconstructed from the stored ones.

    Returns the step; warns of each newer checkpoint that is damaged. Raises CheckpointError where no checkpoint loads,
    UsageError for an average that the run neither has nor can reconstruct.
    """
    width = weights.removeprefix(WIDTH) if weights.startswith(WIDTH) else None
    power = None if width is None else _power(width)
    groups = [_group(assembly, weights)] if power is None else _powers(assembly)
    expected: dict[str, Mapping[str, torch.Tensor] | None] = dict.fromkeys(groups, assembly.network.state_dict())
    components = _components(assembly)
    if components is not None:
        expected["components"] = components.state_dict()
    store = CheckpointStore(directory.checkpoints, on_event=_warn)
    found = store.load(expected, device if power is None else "cpu", must=True)
    assert found is not None
    chosen = found.tensors[groups[0]]
    if power is not None:  # Karras et al. 2024 (arXiv:2312.02696), sec. 3.2
        chosen = reconstruct(stored_profiles(directory.checkpoints), Profile(found.step, power))
    assembly.network.load_state_dict(chosen)
    if components is not None:
        components.load_state_dict(found.tensors["components"])
    assembly.network.to(device).eval()
    return found.step


def _power(width: str) -> float:
    """The exponent of the power average of this relative width."""
    try:
        return power_of(float(width))
    except ValueError as error:
        raise UsageError(
            f"{WIDTH}{width} is no width of a power average", code="DK018", fix="0 < W < 0.2887, such as width:0.1"
        ) from error


def _powers(assembly: Assembly) -> list[str]:
    """The groups of the power averages, from which others are reconstructed."""
    found = [f"ema-{average.name}" for average in assembly.recipe.train.ema if average.power is not None]
    if not found:
        raise UsageError(
            "this run stores no power average to reconstruct another from",
            code="DK018",
            fix="train with train.ema: [{name: wide, power: 6.94}, {name: narrow, power: 17}] and a larger train.keep",
        )
    return found


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
            f'this run has no weights "{weights}"',
            code="DK018",
            choices=list(dict.fromkeys(["raw", "ema", *names])),
            fix="choose one",
        )
    return f"ema-{weights}"
