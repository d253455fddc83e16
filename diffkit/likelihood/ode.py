"""The density of the probability flow, and ODE solvers that give each row of a batch its own steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..chart import ANGLE
from ..denoiser import Denoiser
from ..errors import DivergedError
from ..level import Level
from .chain import wide

Field = Callable[[Tensor, Tensor], Tensor]
Prior = Callable[[Tensor, Level], Tensor]
SAFETY, MIN_FACTOR, MAX_FACTOR = 0.9, 0.2, 10.0


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method with n stages.

    a, b, c   coefficients: a has n - 1 rows of 1, ..., n - 1 numbers, b and c have n
    errors    weights of the n stages and of the slope at the new point, whose sum estimates the error; if there are two
              lists, |e|^2 / sqrt(|e|^2 + |f|^2 / 100) is used, as DOP853 does; empty for a method of fixed steps,
              without an error estimate
    order     order of the error estimate
    """

    name: str
    a: Sequence[Sequence[float]]
    b: Sequence[float]
    c: Sequence[float]
    errors: Sequence[Sequence[float]] = ()
    order: int = 0


RK2 = Tableau("rk2", [[1.0]], [0.5, 0.5], [0.0, 1.0])
"""The explicit trapezoidal rule, of order 2."""
RK4 = Tableau("rk4", [[0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], [0.0, 0.5, 0.5, 1.0])
"""The classical method of order 4."""
BOGACKI_SHAMPINE = Tableau(
    "rk23",
    [[1 / 2], [0.0, 3 / 4]],
    [2 / 9, 1 / 3, 4 / 9],
    [0.0, 1 / 2, 3 / 4],
    [[5 / 72, -1 / 12, -1 / 9, 1 / 8]],
    order=2,
)
"""The pair of orders 3 and 2. Source: Bogacki & Shampine 1989, doi:10.1016/0893-9659(89)90079-7."""
DORMAND_PRINCE = Tableau(
    "rk45",
    [
        [1 / 5],
        [3 / 40, 9 / 40],
        [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    ],
    [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    [0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0],
    [[-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40]],
    order=4,
)
"""The pair of orders 5 and 4. Source: Dormand & Prince 1980, doi:10.1016/0771-050X(80)90013-3."""
TABLEAUS = {one.name: one for one in (RK2, RK4, BOGACKI_SHAMPINE, DORMAND_PRINCE)}


@dataclass(frozen=True)
class Fixed:
    """Steps of equal length in t^(1/power), so that they are short near t = 0; they cannot hang.

    steps     number of steps
    tableau   the method; default RK4
    power     default 3
    """

    steps: int
    tableau: Tableau = RK4
    power: float = 3.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.power <= 0:
            raise ValueError(f"fixed steps require steps >= 1 and power > 0, got {self.steps} and {self.power}")


@dataclass(frozen=True)
class Adaptive:
    """Steps of each row by its own error estimate, at most rtol |y| + atol in the root mean square."""

    rtol: float = 1e-5
    atol: float = 1e-5
    tableau: Tableau = DORMAND_PRINCE

    def __post_init__(self) -> None:
        if not self.tableau.errors or min(self.rtol, self.atol) < 0 or max(self.rtol, self.atol) <= 0:
            raise ValueError(
                "adaptive steps require a tableau with an error estimate, such as rk45, and a tolerance > 0"
            )


def solve(field: Field, y: Tensor, start: float, end: float, solver: Fixed | Adaptive) -> Tensor:
    """Solve dy/dt = field(t, y) from `start` to `end`, each row as a problem of its own.

    Every evaluation gets all rows, so a batch costs the evaluations of its slowest row, and the result of a row does
    not depend on the others.
    Source: step sizes by Hairer et al. 1993, "Solving ordinary differential equations I", sec. II.4.

    Args:
        field: t: (B,), y: (B, K) -> (B, K). The result for rows that are finished is ignored.
        y: Initial values: (B, K), float64 recommended.
        start: Initial time of all rows.
        end: Final time of all rows.
        solver: Fixed or adaptive steps.

    Returns:
        The values at `end`: (B, K).

    Raises:
        DivergedError: DK511, a value is not finite, or a step size falls below the spacing of floats.
    """
    if isinstance(solver, Fixed):
        return _fixed(field, y, start, end, solver)
    return _adaptive(field, y, start, end, solver)


def _fixed(field: Field, y: Tensor, start: float, end: float, solver: Fixed) -> Tensor:
    root = [math.copysign(abs(t) ** (1.0 / solver.power), t) for t in (start, end)]
    at = [root[0] + (root[1] - root[0]) * k / solver.steps for k in range(solver.steps + 1)]
    times = [math.copysign(abs(r) ** solver.power, r) for r in at]
    for t, s in pairwise(times):
        rows = torch.full((len(y),), t, dtype=y.dtype, device=y.device)
        y, _ = _step(field, rows, y, torch.full_like(rows, s - t), field(rows, y), solver.tableau)
    _require_finite(y)
    return y


def _adaptive(field: Field, y: Tensor, start: float, end: float, solver: Adaptive) -> Tensor:
    tableau, sign = solver.tableau, math.copysign(1.0, end - start)
    _require_finite(y)
    t = torch.full((len(y),), start, dtype=y.dtype, device=y.device)
    f = field(t, y)
    h = _first_step(field, t, y, f, end, solver)
    rejected = torch.zeros_like(t, dtype=torch.bool)
    while bool((t != end).any()):
        running = t != end
        least = 10.0 * (torch.nextafter(t, torch.full_like(t, sign * math.inf)) - t).abs()
        broken = running & rejected & (h < least)
        if bool(broken.any()):
            row = int(broken.nonzero()[0])
            raise _failed(f"the steps of sample {row} of the batch fall below the spacing of numbers")
        h = torch.maximum(h, least)
        new = torch.where(sign * (t + sign * h - end) > 0, torch.full_like(t, end), t + sign * h)
        step = new - t
        ahead, slopes = _step(field, t, y, step, f, tableau)
        slopes.append(field(new, ahead))
        error = _error(slopes, step, solver.atol + solver.rtol * torch.maximum(y.abs(), ahead.abs()), tableau)
        accepted = running & (error < 1.0)
        factor = (SAFETY * error ** (-1.0 / (tableau.order + 1))).nan_to_num(MIN_FACTOR, posinf=MAX_FACTOR)
        factor = factor.clamp(MIN_FACTOR, MAX_FACTOR)
        h = step.abs() * torch.where(accepted & rejected, factor.clamp(max=1.0), factor)
        rejected = running & ~accepted
        t = torch.where(accepted, new, t)
        y, f = (torch.where(accepted[:, None], a, b) for a, b in ((ahead, y), (slopes[-1], f)))
    return y


def _first_step(field: Field, t: Tensor, y: Tensor, f: Tensor, end: float, solver: Adaptive) -> Tensor:
    """Return the length (B,) of the first step."""
    span = abs(end - float(t[0]))
    sign = math.copysign(1.0, end - float(t[0]))
    scale = solver.atol + solver.rtol * y.abs()
    size, slope = _rms(y / scale), _rms(f / scale)
    h0 = torch.where((size < 1e-5) | (slope < 1e-5), torch.full_like(size, 1e-6), 0.01 * size / slope).clamp(max=span)
    change = _rms((field(t + sign * h0, y + sign * h0[:, None] * f) - f) / scale) / h0
    most = torch.maximum(slope, change)
    h1 = torch.where(most <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / most) ** (1.0 / (solver.tableau.order + 1)))
    return torch.minimum(100.0 * h0, h1).clamp(max=span)


def _step(field: Field, t: Tensor, y: Tensor, h: Tensor, f: Tensor, tableau: Tableau) -> tuple[Tensor, list[Tensor]]:
    """Return y after steps h: (B,), and the slopes of the stages; f is the slope at t."""
    slopes = [f]
    for row, c in zip(tableau.a, tableau.c[1:]):
        change = sum(a * k for a, k in zip(row, slopes) if a != 0.0)
        slopes.append(field(t + c * h, y + h[:, None] * change))
    return y + h[:, None] * sum(b * k for b, k in zip(tableau.b, slopes) if b != 0.0), slopes


def _error(slopes: Sequence[Tensor], h: Tensor, scale: Tensor, tableau: Tableau) -> Tensor:
    """Return the estimated error in units of the tolerance: (B,)."""
    parts = [_rms(sum(e * k for e, k in zip(weights, slopes) if e != 0.0) / scale) for weights in tableau.errors]
    if len(parts) == 1:
        return h.abs() * parts[0]
    first, second = parts
    return h.abs() * first**2 / torch.sqrt(first**2 + 0.01 * second**2).clamp(min=torch.finfo(h.dtype).tiny)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(1).sqrt()


def _require_finite(y: Tensor) -> None:
    if not bool(torch.isfinite(y).all()):
        row = int((~torch.isfinite(y)).any(1).nonzero()[0])
        raise _failed(f"sample {row} of the batch is not finite")


def _failed(reason: str) -> DivergedError:
    return DivergedError(
        f"the ODE solver failed: {reason}",
        code="DK511",
        fix="raise rtol and atol, or use a sampler of fixed steps (ddim)",
    )


@dataclass(frozen=True, slots=True)
class FlowDensity:
    """The log density log p_s(x): (B,) in nats, the latent (B, *S) at the noisy end, and the number of evaluations."""

    log_density: Tensor
    latent: Tensor
    nfe: int


def log_density(
    denoise: Denoiser,
    x: Tensor,
    s: Level,
    t: Level,
    *,
    prior: Prior | None = None,
    probes: Sequence[Tensor] | None = None,
    solver: Fixed | Adaptive | None = None,
    cond: Mapping[str, Tensor] | None = None,
) -> FlowDensity:
    """Compute the log density of x at level s under the flow from the prior at level t.

    log p_s(x) = log p_t(x_t) + int div + D log(r_t / r_s): the integral runs along the flow in the ANGLE chart.
    Source: Song et al. 2021 (arXiv:2011.13456), eq. 39, 40.

    Args:
        denoise: The trained denoiser.
        x: Examples (B, *S) at level s.
        s: The cleaner level, sigma_s > 0.
        t: The noisier level, at which the prior is known.
        prior: Log density (B,) of x_t at level t; default N(0, sigma_t^2 I), from which samplers start.
        probes: Tensors p (B, *S) with E[p p^T] = I, such as random signs or normal noise: the divergence is estimated,
            without bias, by the mean of p^T J p over them, the same p along the whole flow. Default: exact, D
            derivatives per evaluation.
        solver: Default `Adaptive()`.
        cond: Conditions, each (B, ...); default none.

    Returns:
        The log densities, the latents and the number of evaluations.

    Raises:
        DivergedError: DK511, the solver fails.
    """
    calls, size = 0, x[0].numel()

    def field(angle: Tensor, rows: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        with torch.enable_grad():
            y = rows[:, :size].to(x.dtype).reshape(x.shape).requires_grad_()
            v = flow_slope(denoise, y, angle, cond)
            change = divergence(v, y, probes)
        return torch.cat([wide(v.detach()).flatten(1), wide(change)[:, None]], 1)

    start = torch.cat([wide(x).flatten(1) / float(s.scale), wide(x).new_zeros(len(x), 1)], 1)
    end = solve(field, start, float(s.angle), float(t.angle), solver or Adaptive())
    latent = (float(t.scale) * end[:, :size]).to(x.dtype).reshape(x.shape)
    gained = end[:, size] + size * math.log(float(t.scale) / float(s.scale))
    return FlowDensity(wide((prior or standard_normal)(latent, t)) + gained, latent, calls)


def flow_slope(denoise: Denoiser, y: Tensor, angle: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
    """Compute dy / d angle of the probability flow for y = x / r, r = hypot(alpha, sigma).

    Args:
        denoise: The trained denoiser.
        y: (B, *S).
        angle: (B,), atan2(sigma, alpha) in radians.
        cond: Conditions, each (B, ...); default none.

    Returns:
        The derivative: (B, *S).
    """
    return ANGLE.slope(denoise(y, Level(torch.cos(angle), torch.sin(angle)), **(cond or {})))


def divergence(v: Tensor, y: Tensor, probes: Sequence[Tensor] | None) -> Tensor:
    """Compute the divergence sum_d dv_d / dy_d of each example.

    Args:
        v: Field (B, *S), computed from y with gradients enabled.
        y: (B, *S), requires grad.
        probes: None for the exact sum; else tensors p (B, *S), over which p^T (dv/dy) p is averaged.

    Returns:
        The divergence: (B,).
    """
    if probes is not None:
        each = [(p * torch.autograd.grad(v, y, p, retain_graph=True)[0]).flatten(1).sum(1) for p in probes]
        return torch.stack(each).mean(0)
    flat, total = v.flatten(1), torch.zeros(len(v), dtype=v.dtype, device=v.device)
    for d in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, d].sum(), y, retain_graph=True)
        total = total + row.flatten(1)[:, d]
    return total


def standard_normal(x: Tensor, level: Level) -> Tensor:
    """Compute log N(x; 0, sigma^2 I): (B,), the density from which samplers start."""
    z = wide(x).flatten(1) / float(level.sigma)
    return -(0.5 * (z**2 + math.log(2.0 * math.pi)) + math.log(float(level.sigma))).sum(1)
