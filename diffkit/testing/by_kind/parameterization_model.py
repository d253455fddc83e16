"""Laws of parameterizations inside of a `Model`: the same denoiser, whatever the network predicts."""

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


class _Told(Network):
    """Remembers what it was told, and answers zeros."""

    def __init__(self, outputs: int, integer_time: bool) -> None:
        super().__init__()
        self.outputs, self.integer_time = outputs, integer_time
        self.heard: list[Tensor] = []
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.heard.append(c_noise)
        self.seen.append(x)
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
    statement="a perfect network is the exact denoiser, whatever it predicts and on whatever curve it is asked",
    source="identities C1, A8; design.md, fact 5; tests/pains.md, 5",
    tolerance=2e-5,
    identities="A8 C1",
)
def model(case: Case, result: LawResult) -> None:
    """(x0, eps) survives rescaling of x, so a model answers at levels of other families than its own.

    c_noise is a float32, which is where the tolerance comes from.
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
    """Samplers see x0 and eps only: half ancestral steps on whole times, then to clean data, with the same noises."""
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
    statement="c_noise differs at every level and is one float32 for each example; whole for networks that need it",
    source="design.md, numerics",
    tolerance=0.0,
)
def tells_level(case: Case, result: LawResult) -> None:
    """A network that cannot tell two levels apart cannot denoise both; the level itself is never rounded."""
    p: Parameterization = case.component
    for schedule in _schedules(p):
        for integer_time in (False, True):
            network = _Told(p.out_channels(2), integer_time)
            denoise = Model(network, p, schedule)
            x = case.normal(3, 2)
            for t in _inside(schedule):
                denoise.output(x, schedule.level(t))
            told = [float(c[0]) for c in network.heard]
            fine = all(c.dtype == torch.float32 and c.shape == (3,) for c in network.heard)
            result.holds(fine, "c_noise is not (B,) float32", "one float32 for each example")
            result.holds(len(set(told)) == len(told), f"c_noise {told}", "different at different levels")
            order = all(a < b for a, b in pairwise(told)) or all(a > b for a, b in pairwise(told))
            result.holds(order, f"c_noise {told}", "monotone in t")
            if integer_time and p.c_noise(schedule.noise) is None:
                result.holds(all(c == int(c) for c in told), f"c_noise {told}", "whole numbers")
            elif p.c_noise(schedule.noise) is None:
                index = [float(schedule.index(t)) for t in _inside(schedule)]
                same = all(abs(a - b) <= 1e-6 * max(1.0, abs(b)) for a, b in zip(told, index, strict=True))
                result.holds(same, f"c_noise {told}", f"the index, unrounded: {index}")


@law(
    "parameterization",
    statement="the network sees c_in times x on the curve it was trained on",
    source="Karras et al. 2022 (arXiv:2206.00364), eq. 7",
    tolerance=1e-9,
    identities="C6",
)
def network_input(case: Case, result: LawResult) -> None:
    """x at a level of any scale is carried to the own curve first."""
    p: Parameterization = case.component
    for schedule in _schedules(p):
        for t in _inside(schedule):
            own = schedule.level(t)
            for scale in (1.0, 3.0):
                network = _Told(p.out_channels(2), False)
                x = case.normal(3, 2)
                Model(network, p, schedule)(x * scale, Level(float(own.alpha) * scale, float(own.sigma) * scale))
                result.compare(network.seen[0], float(p.c_in(own)) * x, f"input at t = {t:.5g}, scaled by {scale}", 1.0)


@law(
    "parameterization",
    statement="a level outside of what was trained is refused, one within its rounding is not",
    source="tests/pains.md, 3; design.md, numerics",
    tolerance=0.0,
)
def outside(case: Case, result: LawResult) -> None:
    """Extrapolating a network in noise gives a plausible wrong sample; a message is better."""
    p: Parameterization = case.component
    for schedule in _schedules(p):
        denoise = Model(_Told(p.out_channels(2), False), p, schedule)
        noise = schedule.noise
        if float(noise.alpha) < 1e-9:
            continue
        beyond = Level(float(noise.alpha) * 0.5, float(noise.sigma))
        try:
            denoise(case.normal(2, 2), beyond)
        except LevelError:
            result.holds(True, "beyond the noisy end", "")
        else:
            result.holds(False, f"answered at {beyond}, beyond {noise}", "LevelError")
        denoise(case.normal(2, 2), Level(float(noise.alpha) * (1 + 1e-12), float(noise.sigma)))
