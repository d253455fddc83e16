"""The timestep shift, as a grid around another grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from diffkit import Grid, Schedule


@dataclass(frozen=True)
class Shifted(Grid):
    """Shift the times of the grid `inner`: u' = s u / (1 + (s - 1) u), u = (t - t_clean) / (t_noise - t_clean).

    s = `shift` > 1 moves steps towards noise; both ends stay. On `rectified` this is half_logsnr' = half_logsnr - log s
    (identity A15 of docs/theory/identities.md). Without `inner`, the grid shifts n equal parts of the schedule. Each
    call computes the times from `inner`, so the shift is never applied twice; the shifts of two nested grids multiply.
    Source: Esser et al. 2024 (arXiv:2403.03206), eq. 23, with s = sqrt(m / n) for images of m pixels instead of n.
    """

    shift: Annotated[float, Field(gt=0)] = 3.0
    inner: Grid | None = None
    law_options = ({"shift": 0.4},)

    @property
    def discrete_only(self) -> bool:
        return self.inner is not None and self.inner.discrete_only

    @property
    def reaches_noise(self) -> bool:
        return self.inner is None or self.inner.reaches_noise

    @property
    def declares_deficit(self) -> bool:
        return self.inner is not None and self.inner.declares_deficit

    def points(self, schedule: Schedule, n: int) -> list[float]:
        low, span = schedule.t_clean, schedule.t_noise - schedule.t_clean
        if self.inner is None:
            parts = [1.0 - j / n for j in range(n)]
        else:
            parts = [(t - low) / span for t in self.inner.points(schedule, n)]
        return [low + span * (self.shift * u / (self.shift * u + (1.0 - u))) for u in parts]
