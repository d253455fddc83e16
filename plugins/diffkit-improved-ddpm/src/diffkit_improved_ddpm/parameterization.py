"""A learned variance, predicted beside x0 or eps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diffkit import Estimate, Level, Parameterization, Scalar, build


@dataclass(frozen=True)
class LearnedRange(Parameterization):
    """Predict a variance beside `inner`: one number v per dimension, f = aux["variance_fraction"] = (v + 1) / 2.

    log std^2 = f log beta + (1 - f) log beta tilde; the sampler `ancestral` and the objectives use this variance with
    variance: learned. v is not clamped. y: (B, 2C, *S), the first C channels are those of `inner`. Raises ValueError
    if `inner` has such a head already. Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15.
    """

    inner: Parameterization

    def __post_init__(self) -> None:
        if "variance_fraction" in self.inner.provides:
            raise ValueError("learned-range cannot contain learned-range: `inner` predicts a variance already")

    @staticmethod
    def law_example(folder: Path) -> LearnedRange:
        """Return an instance on which the laws are tested."""
        return LearnedRange(build("parameterization", "eps"))

    @property
    def provides(self) -> tuple[str, ...]:
        return (*self.inner.provides, "variance_fraction")

    @property
    def full_precision(self) -> bool:
        return self.inner.full_precision

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        return self.inner.coefficients(level)

    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        return self.inner.target(x0, eps, level)

    def decode(self, y: Tensor, x: Tensor, level: Level) -> Estimate:
        heads = self.inner.out_channels(x.shape[1])
        known, v = self.inner.decode(y[:, :heads], x, level), y[:, heads:]
        return known.with_aux(variance_fraction=(v + 1.0) / 2.0)

    def weight(self, level: Level) -> Scalar:
        return self.inner.weight(level)

    def out_channels(self, channels: int) -> int:
        return self.inner.out_channels(channels) + channels

    def c_in(self, level: Level) -> Scalar:
        return self.inner.c_in(level)

    def c_noise(self, level: Level) -> Scalar | None:
        return self.inner.c_noise(level)
