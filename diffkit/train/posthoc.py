"""Averages of any width after training, from a few stored snapshots of power profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CheckpointError
from .checkpoint import Expected, read_checkpoint
from .manifest import candidates


@dataclass(frozen=True)
class Profile:
    """A power profile p(tau) = (g + 1) tau^g / t^(g + 1) on [0, t]: `t` is the update at which it was stored."""

    t: float
    power: float


def stored_profiles(directory: Path) -> list[tuple[Profile, dict[str, Tensor]]]:
    """Every power average in the whole checkpoints of a `checkpoints/` directory, oldest first.

    How many there are is up to `train.keep` and `train.checkpoint_every`. Damaged checkpoints are left out.
    """
    found = []
    for candidate in reversed(candidates(directory)):
        try:
            state = read_checkpoint(candidate, {}).state
            powers = dict(zip(state["averages"], state["powers"], strict=True))
            groups: Expected = {f"ema-{name}": None for name, power in powers.items() if power > 0}
            tensors = read_checkpoint(candidate, groups).tensors
        except CheckpointError:
            continue
        found += [(Profile(candidate.step, p), tensors[f"ema-{n}"]) for n, p in powers.items() if p > 0]
    return found


def inner(a: Profile, b: Profile) -> float:
    """The integral of the product of two profiles.

    (g1 + 1)(g2 + 1) (t1/t2)^e / ((g1 + g2 + 1) max(t1, t2)), e = g2 where t1 < t2, else -g1.
    Source: Karras et al. 2024 (arXiv:2312.02696), app. C.
    """
    e = b.power if a.t < b.t else -a.power
    overlap = (a.power + 1) * (b.power + 1) / ((a.power + b.power + 1) * max(a.t, b.t))
    return float(overlap * (a.t / b.t) ** e)


def coefficients(snapshots: Sequence[Profile], target: Profile) -> NDArray[np.float64]:
    """(K,) factors of the snapshots whose sum is nearest to `target` in least squares; they add up to 1.

    A target that is a combination of the snapshots is met exactly. Raises ValueError without snapshots, or where the
    target lies after the last of them. Source: Karras et al. 2024 (arXiv:2312.02696), app. C.
    Differs: scaled to the sum 1, without which what never moves in training would come out 1e-4 too large.
    """
    if not snapshots:
        raise ValueError("there are no snapshots to reconstruct from")
    if target.t > max(snapshot.t for snapshot in snapshots):
        raise ValueError(f"nothing was stored at update {target.t:g} or later")
    gram = np.array([[inner(a, b) for b in snapshots] for a in snapshots])
    towards = np.array([inner(a, target) for a in snapshots])
    # Profiles are scaled to unit norm: their norms differ by orders of magnitude, which would cost digits.
    norm = np.sqrt(np.diag(gram))
    solution: NDArray[np.float64] = np.linalg.lstsq(gram / np.outer(norm, norm), towards / norm, rcond=1e-14)[0]
    factors = solution / norm
    return factors / factors.sum()  # type: ignore[no-any-return]


def reconstruct(snapshots: Sequence[tuple[Profile, Mapping[str, Tensor]]], target: Profile) -> dict[str, Tensor]:
    """The weights averaged with the profile `target`, from stored (profile, named weights); summed in float64.

    What is not of a floating type is taken from the newest snapshot. Raises ValueError as `coefficients` does.
    """
    factors = coefficients([profile for profile, _ in snapshots], target)
    newest = max(snapshots, key=lambda snapshot: snapshot[0].t)[1]
    result = {}
    for name, like in newest.items():
        if not like.is_floating_point():
            result[name] = like.clone()
            continue
        total = torch.zeros_like(like, dtype=torch.float64)
        for factor, (_, weights) in zip(factors, snapshots, strict=True):
            total.add_(weights[name].double(), alpha=float(factor))
        result[name] = total.to(like.dtype)
    return result
