"""Laws of the components of Kingma et al. 2021: the learned schedule, the continuous bound, and Fourier features."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffkit import Level, Model, Network, Shape
from diffkit.testing import Case, LawResult, fixtures, law
from diffkit.testing.by_kind.objective import FixedRandomStreams, design
from diffkit.testing.by_kind.schedule import sample_times

from .objective import ContinuousVLB
from .schedule import SPEED, LearnedVP

KINGMA = "Kingma et al. 2021 (arXiv:2107.00630)"
NODES = 12
"""Nodes of the quadrature in each part of a schedule, inside which the integrand is smooth."""


class ExactNetwork(Network):
    """The exact eps of Gaussian data as a function of x and gamma, which `schedule` gives the network in c_noise."""

    def __init__(self, schedule: LearnedVP) -> None:
        super().__init__()
        self.low, self.size = schedule.gamma_min, schedule.gamma_max - schedule.gamma_min

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        gamma = self.low + self.size * c_noise.double() / 1000.0
        return fixtures.gaussian()(x.double(), Level(torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt())).eps


def with_shape(schedule: LearnedVP, case: Case) -> LearnedVP:
    """Return a copy of a schedule with other ends, and with shares of the time that differ by factors up to 10."""
    copied = copy.deepcopy(schedule)
    with torch.no_grad():
        copied.ends.copy_(torch.tensor([0.4, -0.3]) / SPEED)
        copied.shares.copy_(case.normal(len(copied.shares), stream="shares") / SPEED)
    return copied


@law(
    "schedule",
    statement="gamma rises from end to end by the same amount in each share of the time; alpha^2 = sigmoid(-gamma)",
    source=f"{KINGMA}, sec. 3.1, app. H",
    tolerance=1e-9,
    identities="A1 A7",
    only=("learned-vp",),
)
def learned_curve(case: Case, result: LawResult) -> None:
    """Within a share gamma is linear; `time` inverts it; what the network receives depends on gamma alone."""
    plain: LearnedVP = case.component
    shaped = with_shape(plain, case)
    shares = torch.softmax(SPEED * shaped.shares.detach().double(), 0)
    low, high = (float(end.detach()) for end in shaped.learned_ends())
    result.compare(low + high, plain.gamma_min + plain.gamma_max + 0.1, "the sum of the ends", 1e3)
    edges, step = [0.0, *shares.cumsum(0).tolist()], (high - low) / len(shares)
    for k, (a, b) in enumerate(pairwise(edges)):
        for fraction in (0.0, 0.3, 0.9):
            t, gamma = min(a + fraction * (b - a), 1.0), low + (k + fraction) * step
            level = shaped.level(t)
            result.compare(-2.0 * float(level.half_logsnr), gamma, f"gamma({t:.4g})", high - low)
            result.compare(float(level.alpha) ** 2, 1.0 / (1.0 + math.exp(gamma)), f"alpha^2({t:.4g})", 1e-3)
            result.compare(float(level.alpha) ** 2 + float(level.sigma) ** 2, 1.0, f"alpha^2 + sigma^2 at {t:.4g}")
            result.compare(shaped.time(level), t, f"time(level({t:.4g}))")
            result.compare(shaped.index(t), plain.index(plain.time(level)), f"index({t:.4g})", 1000.0)
    for t in sample_times(case):
        want = plain.gamma_min + t * (plain.gamma_max - plain.gamma_min)
        result.compare(-2.0 * float(plain.level(t).half_logsnr), want, f"gamma({t:.4g}), untrained", abs(want) + 1.0)


def schedules(case: Case) -> Iterator[tuple[str, LearnedVP]]:
    """Yield two schedules with the same ends and different shapes."""
    even = LearnedVP(-6.0, 3.0, parts=4)
    yield "even shares", even
    shaped = with_shape(even, case)
    with torch.no_grad():
        shaped.ends.zero_()
    yield "uneven shares", shaped


def integral(objective: ContinuousVLB, schedule: LearnedVP) -> Tensor:
    """Compute the mean of the loss over all times, by a Gauss-Legendre rule in each part of the schedule.

    The data and the noise are eight points with the exact first and second moments.
    """
    x0, eps = design()
    model = Model(ExactNetwork(schedule), fixtures.EPS, schedule)
    nodes, weights = legendre(NODES)
    edges, total = schedule.curve()[0].tolist(), torch.zeros((), dtype=torch.float64)
    for a, b in pairwise(edges):
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            loss = objective(model, x0, FixedRandomStreams(eps, 1.0 - (a + node * (b - a))))
            total = total + (b - a) * weight * loss.mean
    return total


def legendre(count: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the Gauss-Legendre rule on [0, 1], by the eigenvalues of a tridiagonal matrix."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / torch.sqrt(4.0 * k**2 - 1.0)
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return 0.5 * (nodes + 1.0), vectors[0] ** 2


def closed_form(low: Tensor, high: Tensor) -> Tensor:
    """Compute the bound of the exact denoiser of Gaussian data, per dimension, between gamma = `low` and `high`.

    E|eps - eps*|^2 = sum s / (s + e^gamma) for variances s, so that the integral is a logarithm.
    """
    s, mean = torch.linalg.eigvalsh(fixtures.COVARIANCE), fixtures.MEAN
    second = (fixtures.COVARIANCE.trace() + mean @ mean) / len(mean)
    diffusion = 0.5 * (torch.log1p(s * torch.exp(-low)) - torch.log1p(s * torch.exp(-high))).mean()
    a2 = torch.sigmoid(-high)
    return diffusion + 0.5 * (a2 * second - a2 - torch.log1p(-a2)) + 0.5 * (1.0 + low + math.log(2.0 * math.pi))


@law(
    "objective",
    statement="the mean of the loss, and its gradient to the ends, are closed forms of the ends, whatever is between",
    source=f"{KINGMA}, sec. 5.1",
    tolerance=1e-5,
    dtype="float32",
    identities="D13 D14",
    only=("continuous-vlb",),
)
def bound_by_ends(case: Case, result: LawResult) -> None:
    """1/2 E|eps - eps*|^2 gamma'(t) dt is a differential of gamma, and the times are integrated exactly."""
    low, high = (torch.tensor(end, dtype=torch.float64, requires_grad=True) for end in (-6.0, 3.0))
    want = closed_form(low, high)
    slopes = SPEED * torch.stack(torch.autograd.grad(want, (low, high)))
    for title, schedule in schedules(case):
        found = integral(case.component, schedule)
        result.compare(found.detach(), want.detach(), f"bound, {title}")
        (slope,) = torch.autograd.grad(found, schedule.ends)
        result.compare(slope, slopes, f"gradient to the ends, {title}")


@law(
    "network",
    statement="features are sin and cos of 2^n pi x, n = lowest and lowest + 1: x and x + 2^(1 - lowest) have the same",
    source=f"{KINGMA}, app. C",
    tolerance=1e-9,
    only=("fourier",),
)
def fourier_features(case: Case, result: LawResult) -> None:
    """The network inside receives x in the first channels, and features that shifts by their period do not change."""
    network = copy.deepcopy(case.component).double()
    shape: Shape = case.context["shape"]
    received: list[Tensor] = []
    network.inner.register_forward_pre_hook(lambda module, args: received.append(args[0]))
    lowest = case.options.get("lowest", 7)
    x = case.normal(4, shape.in_channels, *shape.size)
    with torch.no_grad():
        for shift in (0.0, 2.0 ** (1 - lowest), 0.37 * 2.0 ** (1 - lowest)):
            network(x + shift, torch.full((4,), 300.0))
    channels = shape.in_channels
    plain, whole, part = received
    result.compare(plain[:, :channels], x, "the first channels")
    result.compare(whole[:, channels:], plain[:, channels:], "features after a shift by their period", 1e-3)
    waves = 2.0**lowest * math.pi * x, 2.0 ** (lowest + 1) * math.pi * x
    want = torch.cat([wave(w) for w in waves for wave in (torch.sin, torch.cos)], 1)
    result.compare(plain[:, channels:], want, "features")
    moved = float((part[:, channels:] - plain[:, channels:]).abs().max())
    result.holds(moved > 0.1, f"a shift by a fraction of the period moves the features by {moved:.3g}", "more than 0.1")
