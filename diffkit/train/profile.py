"""Profiles: how much of the past an average of weights remembers, and the three names for it.

`decay` is the factor of the old average in one update; `half_life` the images after which a weight counts half;
`power` the exponent g of a profile (g + 1) tau^g / t^(g + 1), which stretches with training.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .settings import Ema

RAMP = 0.05


def profile(ema: Ema, batch_size: int) -> Callable[[int], float]:
    """The factor beta_n of the old average at update n = 1, 2, ...: new = beta_n old + (1 - beta_n) weights.

    decay: b, warmed up min(b, (1 + n) / (10 + n)). half_life: 2^(-batch / H), warmed up with H at most 5 % of the
    images of earlier updates, so that the first update copies. power: (1 - 1/n)^(g + 1).
    Source: Karras et al. 2022 (arXiv:2206.00364), the authors' training loop; 2024 (arXiv:2312.02696), sec. 3.1.
    """
    if ema.decay is not None:
        decay, warmup = ema.decay, ema.warmup
        return lambda n: min(decay, (1 + n) / (10 + n)) if warmup else decay
    if ema.half_life is not None:
        half_life, warmup = ema.half_life, ema.warmup

        def by_images(n: int) -> float:
            life = min(half_life, RAMP * (n - 1) * batch_size) if warmup else half_life
            return 0.5 ** (batch_size / life) if life > 0 else 0.0

        return by_images
    assert ema.power is not None
    exponent = ema.power + 1.0
    return lambda n: float((1.0 - 1.0 / n) ** exponent)


def half_life_of(decay: float, batch_size: int) -> float:
    """Images after which a weight counts half: batch log(1/2) / log(decay)."""
    return batch_size * math.log(0.5) / math.log(decay)


def decay_of(half_life: float, batch_size: int) -> float:
    """The decay an update of so many images: 2^(-batch / half_life)."""
    return float(0.5 ** (batch_size / half_life))


def width_of(power: float) -> float:
    """sigma_rel = sqrt(g + 1) / ((g + 2) sqrt(g + 3)), the profile's standard deviation / training time.

    Source: Karras et al. 2024 (arXiv:2312.02696), app. C.
    """
    return math.sqrt(power + 1.0) / ((power + 2.0) * math.sqrt(power + 3.0))


def power_of(width: float) -> float:
    """The inverse of `width_of`: the largest root of g^3 + 7 g^2 + (16 - u) g + 12 - u, u = width^-2.

    Raises ValueError where no profile is so wide: width must lie in (0, 0.288].
    """
    if not 0.0 < width <= width_of(0.0):
        raise ValueError(f"a width of {width} is none of a power profile: it must lie in (0, {width_of(0.0):.4f}]")
    u = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - u, 12.0 - u])
    return max(0.0, float(roots[np.abs(roots.imag) < 1e-9 * u].real.max()))


def half_life_of_power(power: float, images: float) -> float:
    """The half-life of the exponential profile that is as wide as the power profile after so many images."""
    return math.log(2.0) * width_of(power) * images


def power_of_half_life(half_life: float, images: float) -> float:
    """The inverse of `half_life_of_power`. Raises ValueError where the half-life is too long for so few images."""
    return power_of(half_life / (math.log(2.0) * images))
