"""The straight path from data to noise."""

from __future__ import annotations

from dataclasses import dataclass

from diffkit import Level, Scalar, Schedule


@dataclass(frozen=True)
class Rectified(Schedule):
    """The straight path: alpha = 1 - t, sigma = t, t in [0, 1], from clean data to pure noise; half_logsnr = -logit(t).

    Source: Liu et al. 2023 (arXiv:2209.03003), eq. 1. Differs: t = 1 is noise here, as everywhere in diffkit; in the
    paper, and in the library flow_matching, t = 1 is data.
    """

    def level(self, t: Scalar) -> Level:
        return Level(1.0 - t, t)

    def time(self, level: Level) -> Scalar:
        return level.sigma / (level.alpha + level.sigma)
