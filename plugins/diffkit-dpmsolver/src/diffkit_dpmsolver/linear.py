"""Linear multistep methods: a step is a sum over the state and the outputs at the last levels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from diffkit import Denoiser, Estimate, Level, Noise, Sampler, attribute

OF_DIFFUSERS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("diffusers", {"grid": {"name": "linspace", "intervals": "n+1", "rounding": "half-even"}, "start_scale": "unit"}),
    ("diffusers", {"grid": {"name": "leading", "intervals": "n+1", "offset": 1}, "start_scale": "unit"}),
    ("diffusers", {"grid": {"name": "trailing"}, "start_scale": "unit"}),
    ("diffusers", {"grid": {"name": "karras", "rounding": "none"}, "start_scale": "unit", "network_time": "rounded"}),
)
"""How diffusers runs its multistep solvers, by grid."""


class Step(NamedTuple):
    """The numbers of one step x_s = keep x_t + sum_i factors_i outputs_i + rho z; factors may be fewer than outputs."""

    keep: float
    factors: Sequence[float]
    rho: float = 0.0

    def mean(self, x: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
        """Compute the sum without its noise, in a new tensor."""
        moved = x * self.keep
        for factor, output in zip(self.factors, outputs):
            moved.add_(output, alpha=factor)
        return moved


class Memory(NamedTuple):
    """The corrected state before the last step, and the outputs up to there, the newest first."""

    x: Tensor
    levels: tuple[Level, ...]
    outputs: tuple[Tensor, ...]


class Multistep(Sampler[Memory]):
    """Base of multistep samplers x_s = keep x_t + sum_i factors_i outputs_i + rho z. Implement `factors`."""

    @attribute
    def remembers(self) -> int:
        """The largest number of outputs, the newest included, that a step uses; default 1."""
        return 1

    @abstractmethod
    def factors(self, t: Level, s: Level, levels: tuple[Level, ...]) -> Step:
        """Return the step from t to s that uses the outputs at `levels`, which may include s.

        Args:
            t: The level before the step.
            s: The level after the step.
            levels: Levels of the known outputs, the newest first.

        Returns:
            The coefficients of the step.
        """

    def output(self, estimate: Estimate) -> Tensor:
        """Return the output that later steps use: the x0 of an estimate."""
        return estimate.x0

    def corrects(self, before: Level, t: Level, s: Level) -> bool:
        """Return whether the step to t is repeated with the output at t before the step to s.

        Args:
            before: The level before the last step.
            t: The level after the last step.
            s: The level after the next step.

        Returns:
            False unless overridden.
        """
        return False

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Memory | None, noise: Noise
    ) -> tuple[Tensor, Memory]:
        before = state or Memory(x, (), ())
        levels = (t, *before.levels)
        outputs = (self.output(denoise(x, t)), *before.outputs)
        if before.levels and self.corrects(before.levels[0], t, s):
            x = self.factors(before.levels[0], t, levels).mean(before.x, outputs)
        step = self.factors(t, s, levels[: self.remembers])
        moved = step.mean(x, outputs)
        if step.rho:
            moved.add_(noise(x), alpha=step.rho)
        return moved, Memory(x, levels[: self.remembers], outputs[: self.remembers])
