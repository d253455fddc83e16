"""Moving averages of the weights: while training, and reconstructed afterwards from those of power-law profiles."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import CheckpointError
from ..storage.checkpoint import Expected, read_checkpoint
from ..storage.manifest import candidates
from ..strategy import local
from .config import EmaConfig
from .state import TrainerState


class Average:
    """A moving average of the weights of a network, kept in a copy of the network that never trains.

    new = beta_n old + (1 - beta_n) weights at update n, from the initial weights on; see `profile`. Buffers, such as
    counts, are copied from the trained network.

    Args:
        ema: the configuration of the average.
        network: the network that is trained; its parameters that require a gradient are averaged.
        batch_size: examples of one update, which `half_life` counts in.
        copied: a copy of the network for the average, sharded in the same way. Default: a new copy.
    """

    def __init__(self, ema: EmaConfig, network: nn.Module, batch_size: int, copied: nn.Module | None = None) -> None:
        self.ema = ema
        self.network = (copy.deepcopy(network) if copied is None else copied).requires_grad_(False).eval()
        self._beta = profile(ema, batch_size)
        mine = dict(self.network.named_parameters())
        trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self._weights: list[Tensor] = [local(parameter) for parameter in trained.values()]
        self._averages: list[Tensor] = [local(mine[name]) for name in trained]
        copies = dict(self.network.named_modules())
        # A module may replace a buffer instead of writing into it, so buffers are looked up by name at each update.
        self._buffers = [
            (copies[path], module, name)
            for path, module in network.named_modules()
            for name, _ in module.named_buffers(recurse=False)
        ]

    @property
    def name(self) -> str:
        """The name that the recipe gives it."""
        return self.ema.name

    @property
    def group(self) -> str:
        """The group of tensors in a checkpoint."""
        return f"ema-{self.name}"

    def update(self, n: int) -> None:
        """Update the average with the weights after update n = 1, 2, ..."""
        self._move(1.0 - self._beta(n))

    def restart(self) -> None:
        """Restart the average from the present weights."""
        self._move(1.0)

    def _move(self, step: float) -> None:
        with torch.no_grad():
            if self._weights:
                torch._foreach_lerp_(self._averages, self._weights, step)
            for mine, theirs, name in self._buffers:
                getattr(mine, name).copy_(getattr(theirs, name))


def average(ema: EmaConfig, weights: Sequence[Tensor], batch_size: int = 1) -> Tensor:
    """Return the average after updates with weights[1:], from weights[0] on: the definition, for tests and analysis.

    Args:
        ema: the configuration of the average.
        weights: tensors of one shape, the initial ones first.
        batch_size: examples of one update.

    Returns:
        A tensor of that shape.
    """
    beta = profile(ema, batch_size)
    result = weights[0].clone()
    for n, values in enumerate(weights[1:], start=1):
        result.lerp_(values, 1.0 - beta(n))
    return result


def effective_weights(ema: EmaConfig, updates: int, batch_size: int = 1) -> Tensor:
    """Return how much the initial weights and those after each update count in the average.

    Args:
        ema: the configuration of the average.
        updates: number of updates.
        batch_size: examples of one update.

    Returns:
        (updates + 1,) float64, the initial weights first; the sum is 1.
    """
    beta = profile(ema, batch_size)
    out = torch.zeros(updates + 1, dtype=torch.float64)
    out[0] = 1.0
    for n in range(1, updates + 1):
        factor = beta(n)
        out *= factor
        out[n] = 1.0 - factor
    return out


MAX_SHARE_OF_IMAGES = 0.05
"""The warm-up bounds a half-life by this share of the images that the earlier updates saw."""


def profile(ema: EmaConfig, batch_size: int) -> Callable[[int], float]:
    """Return the factor beta_n of the old average at update n = 1, 2, ...: new = beta_n old + (1 - beta_n) weights.

    decay: b, warmed up min(b, (1 + n) / (10 + n)). half_life: 2^(-batch / H), warmed up with H at most 5 % of the
    images of earlier updates, so that the first update copies. power: (1 - 1/n)^(g + 1).
    Source: Karras et al. 2022 (arXiv:2206.00364), the authors' training loop; 2024 (arXiv:2312.02696), sec. 3.1.
    Raises ValueError unless exactly one form is given.
    """
    forms = {"decay": ema.decay, "half_life": ema.half_life, "power": ema.power}
    given = [name for name, value in forms.items() if value is not None]
    if len(given) != 1:
        found = ", ".join(given) or "nothing"
        raise ValueError(f"average {ema.name!r} needs one of decay, half_life, power; it has {found}")
    if ema.decay is not None:
        decay, warmup = ema.decay, ema.warmup
        return lambda n: min(decay, (1 + n) / (10 + n)) if warmup else decay
    if ema.half_life is not None:
        half_life, warmup = ema.half_life, ema.warmup

        def by_images(n: int) -> float:
            life = min(half_life, MAX_SHARE_OF_IMAGES * (n - 1) * batch_size) if warmup else half_life
            return 0.5 ** (batch_size / life) if life > 0 else 0.0

        return by_images
    assert ema.power is not None
    exponent = ema.power + 1.0
    return lambda n: float((1.0 - 1.0 / n) ** exponent)


def half_life_of(decay: float, batch_size: int) -> float:
    """Return the half-life in images of a decay per update: batch_size log(1/2) / log(decay)."""
    return batch_size * math.log(0.5) / math.log(decay)


def decay_of(half_life: float, batch_size: int) -> float:
    """Return the decay of an update of `batch_size` images: 2^(-batch_size / half_life)."""
    return float(0.5 ** (batch_size / half_life))


def width_of(power: float) -> float:
    """Return sigma_rel = sqrt(g + 1) / ((g + 2) sqrt(g + 3)): the standard deviation of the profile / training time.

    Source: Karras et al. 2024 (arXiv:2312.02696), app. C.
    """
    return math.sqrt(power + 1.0) / ((power + 2.0) * math.sqrt(power + 3.0))


def power_of(width: float) -> float:
    """Return the inverse of `width_of`: the largest root of g^3 + 7 g^2 + (16 - u) g + 12 - u, u = width^-2.

    Raises:
        ValueError: `width` does not lie in (0, 0.288], so no profile has this width.
    """
    if not 0.0 < width <= width_of(0.0):
        raise ValueError(f"the width of a power profile must lie in (0, {width_of(0.0):.4f}], not {width}")
    u = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - u, 12.0 - u])
    return max(0.0, float(roots[np.abs(roots.imag) < 1e-9 * u].real.max()))


@dataclass(frozen=True)
class Profile:
    """A power profile p(tau) = (g + 1) tau^g / t^(g + 1) on [0, t]: `t` is the update at which it was stored."""

    t: float
    power: float


def stored_profiles(directory: Path) -> list[tuple[Profile, dict[str, Tensor]]]:
    """Return every power-law average in the checkpoints of a `checkpoints/` directory, oldest first.

    `train.keep` and `train.checkpoint_every` determine their number. Damaged checkpoints are left out.
    """
    found = []
    for candidate in reversed(candidates(directory)):
        try:
            powers = TrainerState.from_json(read_checkpoint(candidate, {}).state).powers
            groups: Expected = {f"ema-{name}": None for name, power in powers.items() if power > 0}
            tensors = read_checkpoint(candidate, groups).tensors
        except CheckpointError:
            continue
        found += [(Profile(candidate.step, p), tensors[f"ema-{n}"]) for n, p in powers.items() if p > 0]
    return found


def inner(a: Profile, b: Profile) -> float:
    """Return the integral of the product of two profiles.

    (g1 + 1)(g2 + 1) (t1/t2)^e / ((g1 + g2 + 1) max(t1, t2)), e = g2 if t1 < t2, else -g1.
    Source: Karras et al. 2024 (arXiv:2312.02696), app. C.
    """
    e = b.power if a.t < b.t else -a.power
    overlap = (a.power + 1) * (b.power + 1) / ((a.power + b.power + 1) * max(a.t, b.t))
    return float(overlap * (a.t / b.t) ** e)


def coefficients(snapshots: Sequence[Profile], target: Profile) -> NDArray[np.float64]:
    """Return (K,) factors of the snapshots whose sum is nearest to `target` in least squares; they add up to 1.

    A target that is a combination of the snapshots is met exactly.
    Source: Karras et al. 2024 (arXiv:2312.02696), app. C.
    Differs: scaled to the sum 1; otherwise a weight that never changes in training would be 1e-4 too large.

    Raises:
        ValueError: there are no snapshots, or the target lies after the last of them.
    """
    if not snapshots:
        raise ValueError("there are no snapshots to reconstruct from")
    if target.t > max(snapshot.t for snapshot in snapshots):
        raise ValueError(f"no average was stored at update {target.t:g} or later")
    gram = np.array([[inner(a, b) for b in snapshots] for a in snapshots])
    towards = np.array([inner(a, target) for a in snapshots])
    # Profiles are scaled to unit norm: their norms differ by orders of magnitude, and digits would be lost.
    norm = np.sqrt(np.diag(gram))
    solution: NDArray[np.float64] = np.linalg.lstsq(gram / np.outer(norm, norm), towards / norm, rcond=1e-14)[0]
    factors = solution / norm
    return factors / factors.sum()  # type: ignore[no-any-return]


def reconstruct(snapshots: Sequence[tuple[Profile, Mapping[str, Tensor]]], target: Profile) -> dict[str, Tensor]:
    """Return the weights averaged with the profile `target`, from stored (profile, named weights); summed in float64.

    Tensors of integers are those of the newest snapshot. Raises ValueError as `coefficients` does.
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
