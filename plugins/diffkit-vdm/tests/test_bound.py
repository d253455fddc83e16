"""The continuous bound as an objective: what it does not depend on, and what its parts are."""

from __future__ import annotations

import math

import pytest
import torch
from diffkit_vdm.laws import ExactNetwork, closed_form
from diffkit_vdm.objective import ContinuousVLB, gamma_slope
from diffkit_vdm.schedule import SPEED, LearnedVP, variance_loss
from torch import Tensor

from diffkit import Model, RandomStreams
from diffkit.basics.times import Stratified
from diffkit.likelihood import Categorical, Points, continuous_bound
from diffkit.testing import fixtures


def schedule_of(shares: list[float]) -> LearnedVP:
    """A schedule from gamma = -6 to 3, whose parts have these shares of the time."""
    made = LearnedVP(-6.0, 3.0, parts=len(shares))
    with torch.no_grad():
        made.shares.copy_(torch.tensor(shares).log() / SPEED)
    return made


EVEN, UNEVEN = schedule_of([0.25] * 4), schedule_of([0.1, 0.2, 0.6, 0.1])


def losses(schedule: LearnedVP, count: int, step: int = 0) -> tuple[Tensor, Tensor]:
    """Times and losses of `count` examples of Gaussian data under the exact denoiser."""
    objective = ContinuousVLB(fixtures.GaussianData(), schedule)
    x0 = fixtures.gaussian().sample(count, torch.Generator().manual_seed(step))
    model = Model(ExactNetwork(schedule), fixtures.EPS, schedule)
    with torch.no_grad():
        found = objective(model, x0, RandomStreams(0, step, count))
    return found.t, found.each


def test_two_schedules_with_the_same_ends_have_the_same_loss() -> None:
    """By Monte Carlo, each within its standard error of the closed form; the quadrature is the law `bound-by-ends`."""
    want = float(closed_form(torch.tensor(-6.0).double(), torch.tensor(3.0).double()))
    for schedule in (EVEN, UNEVEN):
        _, each = losses(schedule, 30_000)
        error = float(each.std()) / math.sqrt(len(each))
        assert error < 0.05 * want
        assert abs(float(each.mean()) - want) < 4.0 * error


def test_other_ends_have_another_loss() -> None:
    near, far = (closed_form(torch.tensor(low).double(), torch.tensor(3.0).double()) for low in (-3.0, -6.0))
    assert float(near - far) > 0.05


def test_the_gradient_to_the_shares_is_that_of_the_second_moment() -> None:
    """log int m^2 gamma' dt, differentiated numerically for m = exp(-t^2) at gamma = -6 + 9 t."""
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000

    def size(gamma: Tensor) -> Tensor:
        return torch.exp(-(((gamma + 6.0) / 9.0) ** 2))

    def loss(schedule: LearnedVP) -> Tensor:
        gamma = schedule.gamma(t)
        assert isinstance(gamma, Tensor)
        return (size(gamma) * gamma_slope(schedule, t)).detach()

    schedule = schedule_of([0.1, 0.2, 0.6, 0.1])
    (found,) = torch.autograd.grad(variance_loss(schedule, t, loss(schedule)), schedule.shares)
    for k in range(4):
        moved = []
        for by in (1e-3, -1e-3):
            with torch.no_grad():
                schedule.shares[k] += by
            moved.append(float(loss(schedule).square().mean().log()))
            with torch.no_grad():
                schedule.shares[k] -= by
        assert float(found[k]) == pytest.approx((moved[0] - moved[1]) / 2e-3, abs=1e-3)


def test_the_variance_is_least_if_the_shares_follow_the_size_of_the_error() -> None:
    """The gradient vanishes if E[loss^2] is equal in all parts; uneven shares then have less variance."""
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    errors = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)  # m in each part
    schedule = schedule_of((errors / errors.sum()).tolist())
    inner = schedule.curve()[0][1:-1].contiguous()
    loss = errors[torch.searchsorted(inner, t)] * gamma_slope(schedule, t).detach()
    (found,) = torch.autograd.grad(variance_loss(schedule, t, loss), schedule.shares)
    assert float(loss.std()) < 1e-3 * float(loss.mean())
    assert float(found.abs().max()) < 1e-3


def test_the_objective_is_the_continuous_bound_of_the_likelihood() -> None:
    """Prior, diffusion and decoder of 17 values equal those of `diffkit.likelihood` within their standard errors."""
    count = 2_000
    source = torch.Generator().manual_seed(1)
    x0 = torch.randint(0, 17, (count, 2), generator=source).double() / 8.0 - 1.0
    objective = ContinuousVLB(fixtures.GaussianData(bins=17), UNEVEN, Stratified())
    model = Model(ExactNetwork(UNEVEN), fixtures.EPS, UNEVEN)
    with torch.no_grad():
        loss = objective(model, x0, RandomStreams(0, 0, count))
    points = Points.low_discrepancy(torch.rand(count, generator=source), 4)
    other = continuous_bound(
        fixtures.gaussian(),
        x0,
        UNEVEN.level(0.0),
        UNEVEN.level(1.0),
        noise=lambda x: torch.randn(x.shape, generator=source, dtype=x.dtype),
        points=points,
        decoder=Categorical(17),
    )
    torch.testing.assert_close(loss.parts["prior"], other.prior.mean())
    torch.testing.assert_close(loss.parts["diffusion"], other.diffusion.mean(), rtol=0.05, atol=0.0)
    torch.testing.assert_close(loss.parts["decoder"], other.decoder.mean(), rtol=0.15, atol=0.0)


def test_a_schedule_that_reaches_clean_data_is_refused() -> None:
    with pytest.raises(ValueError, match="both ends of the schedule must have alpha > 0 and sigma > 0"):
        ContinuousVLB(fixtures.GaussianData(), fixtures.discrete())
