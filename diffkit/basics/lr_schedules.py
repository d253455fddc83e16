"""Learning-rate schedules: update n = 1..N has the factor n / warmup in the warm-up, then the factor f of the class.

A warm-up avoids the large first steps of Adam, whose second moment is still a poor estimate.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from diffkit.optimizer import LRSchedule

Steps = Annotated[int, Field(ge=0, le=2**40)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class _WithWarmup(LRSchedule):
    """A schedule that rises linearly over `warmup` updates."""

    warmup: Steps = 0

    def __call__(self, step: int, steps: int) -> float:
        n = step + 1
        return n / self.warmup if n < self.warmup else self._after_warmup(n, steps)

    @abstractmethod
    def _after_warmup(self, n: int, steps: int) -> float:
        """Return the factor f of update n >= warmup."""

    def _progress(self, n: int, steps: int) -> float:
        """Return u, from 0 at the end of the warm-up to 1 at the last update."""
        return min(1.0, (n - self.warmup) / max(1, steps - self.warmup))


@dataclass(frozen=True)
class Constant(_WithWarmup):
    """Keep the learning rate constant: f = 1."""

    def _after_warmup(self, n: int, steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear(_WithWarmup):
    """Decrease the learning rate linearly: f = end + (1 - end) (1 - u), u from 0 at the end of the warm-up to 1 at the
    last update.
    """

    end: Share = 0.0

    def _after_warmup(self, n: int, steps: int) -> float:
        return self.end + (1.0 - self.end) * (1.0 - self._progress(n, steps))


@dataclass(frozen=True)
class Cosine(_WithWarmup):
    """Decrease the learning rate along a cosine: f = end + (1 - end) (1 + cos(pi u)) / 2, u from 0 at the end of the
    warm-up to 1 at the last update.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), eq. 5, without restarts.
    """

    end: Share = 0.0

    def _after_warmup(self, n: int, steps: int) -> float:
        return self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * self._progress(n, steps)))


@dataclass(frozen=True)
class WSD(_WithWarmup):
    """Warm-up, stable, decay: f = 1, then linear to `end` over the last share `decay` of all updates.

    The stable part does not depend on the number of steps, so a longer training can continue from it.
    Source: Hu et al. 2024 (arXiv:2404.06395), sec. 4. Differs: the decay is linear, theirs is exponential.
    """

    decay: Share = 0.1
    end: Share = 0.0

    def _after_warmup(self, n: int, steps: int) -> float:
        length = self.decay * steps
        left = steps - n
        return 1.0 if left >= length else self.end + (1.0 - self.end) * left / length


@dataclass(frozen=True)
class InverseSqrt(_WithWarmup):
    """Decrease the rate as an inverse square root: f = 1 / sqrt(max(1, n / reference)); `reference` None is `warmup`.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), eq. 3, with reference = warmup; Karras et al. 2024
    (arXiv:2312.02696), sec. 2, for diffusion models.
    """

    reference: Annotated[int, Field(ge=1, le=2**40)] | None = None

    def _after_warmup(self, n: int, steps: int) -> float:
        return 1.0 / math.sqrt(max(1.0, n / (self.reference or max(1, self.warmup))))
