"""Methods as denoisers made from denoisers: the estimate of x0 given a measurement y = A x0 + noise.

The measurement is the condition `measurement`, with one row per example or one for all; beside it are the conditions of
the operator, such as `mask`. The methods take both out of the conditions, so that a network does not receive them.
All three move x0 by a step that Bayes' rule gives for some covariance of x0 given x; eps follows from x.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Denoiser, Estimate, Guidance, Level, Scalar, broadcast, scalar

from .operator import Operator

NonNegative = Annotated[float, Field(ge=0)]
MEASUREMENT = "measurement"
UNMEASURED = "options act only if a measurement is given; the laws of this plugin give one"


@dataclass(frozen=True)
class Method(Guidance):
    """Base of methods: `forward` is the operator of the measurement, `noise` the standard deviation of its noise."""

    forward: Operator
    noise: NonNegative = 0.0
    law_base: ClassVar[dict[str, str]] = {"forward": "mask"}
    law_exemptions: ClassVar[dict[str, str]] = {"options-used": UNMEASURED}

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def restored(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            y = cond.pop(MEASUREMENT, None)
            if y is None:
                fix = "pass measurement=, such as sample(partial(denoise, measurement=y), ...)"
                warnings.warn(f"nothing is restored, because there is no measurement; {fix}", stacklevel=2)
                return denoise(x, level, **cond)
            forward = self.forward.at(cond)
            if forward.linear:  # pixels in a hole, and all else outside of the range of A, do not count
                y = forward(forward.pseudo_inverse(y))
            return self.corrected(lambda z: denoise(z, level, **cond), x, level, forward, y)

        return restored

    @abstractmethod
    def corrected(
        self, denoise: Callable[[Tensor], Estimate], x: Tensor, level: Level, forward: Operator, y: Tensor
    ) -> Estimate:
        """Return the estimate of x given y.

        Args:
            denoise: The denoiser at `level`.
            x: The noisy data: (B, C, H, W).
            level: The level of x.
            forward: The operator.
            y: The measurement: (B or 1, C', H', W').

        Returns:
            The estimate of the same x at `level`.
        """


@dataclass(frozen=True)
class DDNM(Method):
    """Replace the part of x0 that is measured: x0 + lambda (A^+ y - A^+ A x0). Needs no gradient.

    lambda = min(1, sigma / (alpha noise)) trusts noisy measurements less at nearly clean levels.
    Source: Wang et al. 2023 (arXiv:2212.00490), eq. 14, and eq. 19 for lambda.
    Differs: lambda uses sigma of the level, not of the noise that the step adds, and the step adds no less noise.
    """

    def corrected(
        self, denoise: Callable[[Tensor], Estimate], x: Tensor, level: Level, forward: Operator, y: Tensor
    ) -> Estimate:
        estimate = denoise(x)
        shift = forward.pseudo_inverse(y) - forward.pseudo_inverse(forward(estimate.x0))
        trust = scalar.minimum(level.ratio / self.noise, 1.0) if self.noise else 1.0
        return estimate.with_x0(estimate.x0 + broadcast(trust, x) * shift)


@dataclass(frozen=True)
class PGDM(Method):
    """Move x0 by C A^T (A V A^T + noise^2 I)^-1 (y - A x0), C = sigma^2 / alpha (dx0 / dx)^T the covariance of x0.

    `covariance: isotropic` has V = r^2 I, r^2 = sigma^2 / (alpha^2 + sigma^2), which is exact for data of unit
    covariance. `exact` has V = C, which is exact for every Gaussian; the system is solved by `iterations` steps of
    conjugate gradients; each differentiates the network once.
    Source: Song et al. 2023 (ICLR, Pseudoinverse-guided diffusion models), eq. 7 and 8; Boys et al. 2023
    (arXiv:2310.06721), eq. 8, for `exact`.
    Differs: the step is that of Bayes' rule at every level, without the paper's factor r^2 of the score.
    """

    covariance: Literal["isotropic", "exact"] = "isotropic"
    iterations: Annotated[int, Field(ge=1)] = 10

    def corrected(
        self, denoise: Callable[[Tensor], Estimate], x: Tensor, level: Level, forward: Operator, y: Tensor
    ) -> Estimate:
        estimate, spread = _with_covariance(denoise, x, level)
        if not forward.linear:
            residual = forward.pseudo_inverse(y) - forward.pseudo_inverse(forward(estimate.x0))
            return estimate.with_x0(estimate.x0 + spread(residual / broadcast(_isotropic(level), x)))
        residual, variance = y - forward(estimate.x0), self.noise**2
        if self.covariance == "isotropic":
            solved = forward.solve(residual, _isotropic(level), variance)
        else:

            def system(v: Tensor) -> Tensor:
                return forward(spread(forward.adjoint(v))) + variance * v

            solved = _conjugate_gradients(system, residual, self.iterations)
        return estimate.with_x0(estimate.x0 + spread(forward.adjoint(solved)))


@dataclass(frozen=True)
class DPS(Method):
    """Move x0 by scale C times the gradient of -|y - A x0|^2 / (2 v), with C as in pgdm, for every A with a gradient.

    v is the larger of noise^2 and the mean of (y - A x0)^2 over measured pixels, an estimate of its variance.
    Source: Chung et al. 2023 (arXiv:2209.14687), eq. 13 and 16.
    Differs: the paper moves x after each step by scale / |y - A x0| times the gradient, which depends on the number of
    steps; here x0 moves, and the result converges if steps are added.
    """

    scale: NonNegative = 1.0

    def corrected(
        self, denoise: Callable[[Tensor], Estimate], x: Tensor, level: Level, forward: Operator, y: Tensor
    ) -> Estimate:
        estimate, spread = _with_covariance(denoise, x, level)
        with torch.enable_grad():
            x0 = estimate.x0.detach().requires_grad_()
            residual = (y - forward(x0)).flatten(1)
            (gradient,) = torch.autograd.grad(residual.square().sum(), x0)
        count = (residual.detach() != 0).sum(1).clamp(min=1)
        variance = (residual.detach().square().sum(1) / count).clamp(min=max(self.noise**2, torch.finfo(x.dtype).tiny))
        return estimate.with_x0(estimate.x0 - 0.5 * self.scale * spread(gradient / broadcast(variance, x)))


@dataclass(frozen=True)
class Known(Guidance):
    """Hand the measurement and the mask to the samplers `blend` and `repaint`, as `known` and `mask` of the aux."""

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def informed(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            found = {name: cond.pop(key) for name, key in (("known", MEASUREMENT), ("mask", "mask")) if key in cond}
            return denoise(x, level, **cond).with_aux(**found)

        return informed


def _isotropic(level: Level) -> Scalar:
    """r^2 = sigma^2 / (alpha^2 + sigma^2), the variance of x0 given x for data of unit variance."""
    return (level.sigma / level.scale) ** 2


def _with_covariance(
    denoise: Callable[[Tensor], Estimate], x: Tensor, level: Level
) -> tuple[Estimate, Callable[[Tensor], Tensor]]:
    """Return the estimate of x, and the function w -> C w, C = sigma^2 / alpha (dx0 / dx)^T = Cov[x0 | x].

    At alpha = 0, x holds nothing of x0, and C w is 0.
    """
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        tracked = denoise(at)
    gain = broadcast(level.sigma * scalar.divide(level.sigma, level.alpha), x)

    def spread(w: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(tracked.x0, at, w.to(x.dtype), retain_graph=True)
        moved = gain * pulled
        return torch.where(torch.isfinite(moved), moved, 0.0)

    aux = {name: value.detach() for name, value in tracked.aux.items()}
    return Estimate(tracked.level, tracked.x0.detach(), tracked.eps.detach(), aux), spread


def _conjugate_gradients(system: Callable[[Tensor], Tensor], y: Tensor, iterations: int) -> Tensor:
    """Solve system(v) = y for each example, system symmetric and positive on the space that y lies in.

    Args:
        system: The map, (B, ...) -> (B, ...).
        y: The right-hand side: (B, ...).
        iterations: Number of steps; an example whose residual is 0 to rounding does not move.

    Returns:
        v: (B, ...).
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))

    v, left, direction = torch.zeros_like(y), y, y
    size = dot(y, y)
    least = size * (10.0 * torch.finfo(y.dtype).eps) ** 2
    for _ in range(iterations):
        image = system(direction)
        curvature = dot(direction, image)
        going = (size > least) & (curvature > 0)
        if not bool(going.any()):
            break
        length = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
        v, left = v + length * direction, left - length * image
        after = dot(left, left)
        direction = left + torch.where(going, after / torch.where(going, size, 1.0), 0.0) * direction
        size = after
    return v
