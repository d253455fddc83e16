"""Laws of the components of Nichol & Dhariwal 2021: the cosine schedule and the hybrid loss."""

from __future__ import annotations

import math

import torch

from diffkit.denoiser import Model
from diffkit.oracles import OracleNetwork
from diffkit.schedule import Schedule
from diffkit.testing import Case, LawResult, NotApplicable, fixtures, law
from diffkit.testing.by_kind.objective import CorrectedNetwork, FixedRandomStreams, design, settings, uniforms
from diffkit.testing.defaults.ddpm import bound_term


@law(
    "schedule",
    statement="alpha_bar_t = f(t/T) / f(0) for t < T, f(u) = cos^2((u + s) / (1 + s) pi / 2); only beta_T is clipped",
    source="Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17",
    tolerance=1e-9,
    identities="A9",
    only=("cosine",),
)
def cosine_curve(case: Case, result: LawResult) -> None:
    """The product of the betas telescopes until the clip at 0.999."""
    schedule: Schedule = case.component
    if case.options or schedule.steps is None:
        raise NotApplicable("tested with default options only")
    T, s = schedule.steps, 0.008

    def f(u: float) -> float:
        return math.cos((u + s) / (1.0 + s) * math.pi / 2.0) ** 2

    for t in (1, 2, T // 2, T - 2, T - 1):
        result.compare(float(schedule.level(float(t)).alpha) ** 2, f(t / T) / f(0.0), f"alpha_bar_{t}", 1e-6)
    ratio = float(schedule.level(float(T)).alpha) ** 2 / float(schedule.level(T - 1.0).alpha) ** 2
    result.compare(ratio, 0.001, "1 - beta_T", 1e-3)


@law(
    "objective",
    statement="the loss is L_simple + scale T L_{t-1} in bits; the bound changes the variance only, not the mean",
    source="Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 16",
    tolerance=1e-4,
    identities="D10",
    only=("hybrid",),
)
def hybrid_parts(case: Case, result: LawResult) -> None:
    """At the exact denoiser both summands are exact. At others the gradient of the mean is that of L_simple."""
    objective = case.component
    x0, eps = design()
    s = fixtures.gaussian().variances
    for schedule, p in settings(case):
        for uniform in uniforms(schedule):
            network = CorrectedNetwork(OracleNetwork(fixtures.GaussianData(), schedule, p))
            model = Model(network, p, schedule)
            loss = objective(model, x0, FixedRandomStreams(eps, uniform))
            t = int(loss.t[0])
            bits = objective.scale * float(bound_term(schedule, t, s, "learned").mean()) / math.log(2.0)
            want = fixtures.gaussian().minimum_loss(p, schedule.level(float(t))) / 2 + bits
            result.compare(float(loss.mean), want, f"loss at t = {t}", 1e-3)
            with torch.no_grad():
                network.constant.add_(0.3)
            moved = objective(model, x0, FixedRandomStreams(eps, uniform))
            (slope,) = torch.autograd.grad(moved.mean, network.constant)
            result.compare(slope, torch.full((2,), 0.3, dtype=torch.float64), f"slope at t = {t}, 0.3 away", 0.3)
