"""Laws of parameterizations in a `Model`: the denoiser does not depend on what the network predicts."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from diffkit import transition
from diffkit.denoiser import Model
from diffkit.errors import LevelError
from diffkit.level import Level
from diffkit.network import Network
from diffkit.parameterization import Parameterization
from diffkit.schedule import Schedule

from ...oracles.network import OracleNetwork
from .. import fixtures
from ..case import Case
from ..law_registry import LawResult, law


class _Recorder(Network):
    """Record the inputs of each call and return zeros."""

    def __init__(self, outputs: int, integer_time: bool) -> None:
        super().__init__()
        self.outputs, self.integer_time = outputs, integer_time
        self.c_noise: list[Tensor] = []
        self.x: list[Tensor] = []

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.c_noise.append(c_noise)
        self.x.append(x)
        return torch.zeros_like(x[:, :1]).expand(-1, self.outputs, *x.shape[2:])


def _schedules(p: Parameterization) -> list[Schedule]:
    own = getattr(p, "schedule", None)
    return [own] if own is not None else [fixtures.discrete(), fixtures.TRIG, fixtures.EXPLODING]


def _inside(schedule: Schedule) -> list[float]:
    if schedule.steps is not None:
        return [1.0, 2.0, 40.0, schedule.steps / 2, schedule.steps - 1.0]
    span = schedule.t_noise - schedule.t_clean
    return [schedule.t_clean + span * u for u in (0.0217, 0.3043, 0.7091, 0.9512)]


@law(
    "parameterization",
    statement="a network without error is the exact denoiser, in every parameterization and on rescaled levels",
    source="identities C1, A8; design.md, fact 5; tests/pains.md, 5",
    tolerance=2e-5,
    identities="A8 C1",
)
def model(case: Case, result: LawResult) -> None:
    """(x0, eps) does not change if x is rescaled, so a model accepts levels of other families than its own.

    The tolerance is due to c_noise in float32.
    """
    p: Parameterization = case.component
    data = fixtures.GaussianData()
    oracle = fixtures.gaussian()
    for schedule in _schedules(p):
        network = OracleNetwork(data, schedule, p)
        denoise = Model(network, p, schedule)
        for t in _inside(schedule):
            own = schedule.level(t)
            for scale in (1.0, 2.5):
                level = Level(float(own.alpha) * scale, float(own.sigma) * scale)
                x = level.add_noise(oracle.sample(4, case.generator("x0")), case.normal(4, 2, stream="eps"))
                want, got = oracle(x, level), denoise(x, level)
                at = f"t = {t:.5g} of {type(schedule).__name__}, scaled by {scale}"
                result.compare(got.x0, want.x0, f"x0 at {at}", 1.0)
                result.compare(got.eps, want.eps, f"eps at {at}", 1.0)
                result.holds(got.level == level, f"the estimate's level is {got.level}", f"{level}")


@law(
    "parameterization",
    statement="the same denoiser in this parameterization gives the same sample",
    source="identities J; tests/pains.md, 5",
    tolerance=1e-4,
    identities="A8",
)
def same_sample(case: Case, result: LawResult) -> None:
    """Samplers use x0 and eps only: steps with half the ancestral noise on whole times, then to clean data."""
    p: Parameterization = case.component
    oracle = fixtures.gaussian()
    for schedule in _schedules(p):
        if schedule.steps is None and schedule is not fixtures.TRIG:
            continue
        denoise = Model(OracleNetwork(fixtures.GaussianData(), schedule, p), p, schedule)
        top, low = (schedule.t_noise - 1.0, 1.0) if schedule.steps else (0.95, 0.02)
        times = [top + (low - top) * i / 5 for i in range(6)]
        levels = [schedule.level(float(round(t)) if schedule.steps else t) for t in times]
        got = want = case.normal(4, 2, stream="start")
        for i, (t, s) in enumerate(pairwise(levels)):
            z = case.normal(4, 2, stream=f"z{i}")
            rho = 0.5 * float(transition.posterior(t, s))
            got, want = denoise(got, t).step_to(s, rho, z), oracle(want, t).step_to(s, rho, z)
        last = levels[-1]
        result.compare(denoise(got, last).x0, oracle(want, last).x0, f"a sample on {type(schedule).__name__}")


@law(
    "parameterization",
    statement="c_noise is one float32 for each example, different at every level, and whole if integer_time is set",
    source="design.md, numerics",
    tolerance=0.0,
)
def tells_level(case: Case, result: LawResult) -> None:
    """A network that cannot distinguish two levels cannot denoise both."""
    p: Parameterization = case.component
    for schedule in _schedules(p):
        for integer_time in (False, True):
            network = _Recorder(p.out_channels(2), integer_time)
            denoise = Model(network, p, schedule)
            x = case.normal(3, 2)
            for t in _inside(schedule):
                denoise.output(x, schedule.level(t))
            values = [float(c[0]) for c in network.c_noise]
            fine = all(c.dtype == torch.float32 and c.shape == (3,) for c in network.c_noise)
            result.holds(fine, "c_noise is not (B,) float32", "one float32 for each example")
            result.holds(len(set(values)) == len(values), f"c_noise {values}", "different at different levels")
            order = all(a < b for a, b in pairwise(values)) or all(a > b for a, b in pairwise(values))
            result.holds(order, f"c_noise {values}", "monotone in t")
            if integer_time and p.c_noise(schedule.noise) is None:
                result.holds(all(c == int(c) for c in values), f"c_noise {values}", "whole numbers")
            elif p.c_noise(schedule.noise) is None:
                index = [float(schedule.index(t)) for t in _inside(schedule)]
                same = all(abs(a - b) <= 1e-6 * max(1.0, abs(b)) for a, b in zip(values, index, strict=True))
                result.holds(same, f"c_noise {values}", f"the index, unrounded: {index}")


@law(
    "parameterization",
    statement="the input of the network is c_in x, with x rescaled to the schedule that it is trained on",
    source="Karras et al. 2022 (arXiv:2206.00364), eq. 7",
    tolerance=1e-9,
    identities="C6",
)
def network_input(case: Case, result: LawResult) -> None:
    """x at a level of another scale is rescaled first."""
    p: Parameterization = case.component
    for schedule in _schedules(p):
        for t in _inside(schedule):
            own = schedule.level(t)
            for scale in (1.0, 3.0):
                network = _Recorder(p.out_channels(2), False)
                x = case.normal(3, 2)
                Model(network, p, schedule)(x * scale, Level(float(own.alpha) * scale, float(own.sigma) * scale))
                result.compare(network.x[0], float(p.c_in(own)) * x, f"input at t = {t:.5g}, scaled by {scale}", 1.0)


@law(
    "parameterization",
    statement="a level beyond the schedule raises LevelError; a level within rounding of its end does not",
    source="tests/pains.md, 3; design.md, numerics",
    tolerance=0.0,
)
def outside(case: Case, result: LawResult) -> None:
    """Beyond the trained levels a network gives plausible but wrong samples."""
    p: Parameterization = case.component
    for schedule in _schedules(p):
        denoise = Model(_Recorder(p.out_channels(2), False), p, schedule)
        noise = schedule.noise
        if float(noise.alpha) < 1e-9:
            continue
        beyond = Level(float(noise.alpha) * 0.5, float(noise.sigma))
        try:
            denoise(case.normal(2, 2), beyond)
        except LevelError:
            result.holds(True, "beyond the noisy end", "")
        else:
            result.holds(False, f"no error at {beyond}, beyond {noise}", "LevelError")
        denoise(case.normal(2, 2), Level(float(noise.alpha) * (1 + 1e-12), float(noise.sigma)))
