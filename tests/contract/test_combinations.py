"""Every parameterization with every sampler on every schedule that is installed, on exact networks of Gaussian data.

Three rules make the matrix: a combination is legal where each pair in it is (no check of a recipe looks at all three),
a sampler alone follows the exact law of the data, and a model in any prediction is that denoiser.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from diffkit import Estimate, Level, Model, Parameterization, SampleNoise, Sampler, Schedule, build, load_recipe, sample
from diffkit.errors import RecipeError
from diffkit.host import registry
from diffkit.testing import GaussianOracle, OracleNetwork
from diffkit.testing.fixtures import GaussianData, gaussian

F64 = torch.float64
OPTIONS: dict[tuple[str, str], str] = {
    ("parameterization", "learned-range"): "inner: eps",
    ("schedule", "zero-snr"): "inner: linear",
    ("sampler", "blend"): "inner: ddim",
    ("sampler", "diffusers"): "scheduler: DDIMScheduler",
    ("sampler", "repaint"): "inner: ddim",
}
"""What a component must be told; all others are built from their defaults."""
MORE = {
    "sampler": [
        ("ancestral", "variance: large"),
        ("ancestral", "variance: learned"),
        ("ddim", "eta: 0.5"),
        ("predictor-corrector", "corrector: annealed"),
    ]
}
"""Variants of which the legality, or the law, differs from that of the default."""
ROOM = {"euler-maruyama": 0.25, "reverse-diffusion": 0.25, "predictor-corrector": 0.6}
"""How far moments may be off where it is more than 0.15: an explicit drift is of first order with a large constant, and
Langevin steps sized by the score's norm have a bias of 2 / D in the variance, D = 2 here."""

TEXT = """
name: combination
data: {{name: gaussian, count: 64, held_out: 8}}
schedule: {schedule}
parameterization: {parameterization}
network: oracle
objective: simple
train: {{steps: 0}}
sample: {{sampler: {sampler}, grid: trailing, steps: 5}}
"""


def written(kind: str) -> list[str]:
    """All first-party components of a kind, as a recipe writes them."""
    found = [
        f"{{name: {one.name}, {OPTIONS[kind, one.name]}}}" if (kind, one.name) in OPTIONS else one.name
        for one in registry().entries(kind)
        if one.plugin.distribution.startswith("diffkit")
    ]
    return found + [f"{{name: {name}, {option}}}" for name, option in MORE.get(kind, []) if name in found]


SCHEDULES, PARAMETERIZATIONS, SAMPLERS = (written(kind) for kind in ("schedule", "parameterization", "sampler"))
GENERAL = {"schedule": "linear", "parameterization": "x0", "sampler": "ancestral"}
"""Parts that go with everything of the other kinds."""


@cache
def refusal(**parts: str) -> RecipeError | None:
    """Why a recipe of these parts is refused, None where it is valid."""
    try:
        load_recipe(TEXT.format(**{**GENERAL, **parts}))
    except RecipeError as error:
        return error
    return None


@cache
def made(kind: str, text: str) -> Any:
    """The component that a recipe means by `text`."""
    name, _, option = text.strip("{}").removeprefix("name: ").partition(", ")
    key, _, value = option.partition(": ")
    if kind == "parameterization" and name == "mu":
        return build(kind, name, schedule=made("schedule", "linear"))
    return build(kind, name, **({key: float(value) if value[:1].isdigit() else value} if key else {}))


def on(schedule: Schedule, text: str) -> Parameterization:
    """The parameterization `text` on `schedule`."""
    return build("parameterization", "mu", schedule=schedule) if text == "mu" else made("parameterization", text)


def path(schedule: Schedule, n: int, *, reaches_noise: bool = True) -> list[Level]:
    """About n + 1 levels of the schedule, even in half_logsnr from its noise, or -5, to 4, then clean."""
    noise, clean = schedule.noise, schedule.level(schedule.t_clean)
    first, last = max(-5.0, float(noise.half_logsnr)), min(4.0, float(clean.half_logsnr))
    angles = [math.atan(math.exp(-(first + (last - first) * i / (n - 1)))) for i in range(n)]
    times = [float(schedule.time(Level(math.cos(a), math.sin(a)))) for a in angles]
    if schedule.steps is not None:
        times = [float(max(1, round(t))) for t in times]
    if reaches_noise:
        times.insert(0, schedule.t_noise)
    distinct = [t for t, after in pairwise([*times, -1.0]) if t > after + 1e-9]
    return [*(schedule.level(t) for t in distinct), schedule.clean]


def exact(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
    """The denoiser of the data, with the head of learned-range."""
    known = gaussian()(x, level)
    return Estimate(level, known.x0, known.eps, {"variance_fraction": torch.full_like(x, 0.5)})


class Cached(OracleNetwork):
    """The exact network; the same few levels are read back from c_noise again and again."""

    def __init__(self, schedule: Schedule, parameterization: Parameterization) -> None:
        super().__init__(GaussianData(), schedule, parameterization)
        self.levels: dict[tuple[float, ...], Level] = {}

    def _level(self, c_noise: Tensor) -> Level:
        key = tuple(c_noise.tolist())
        if key not in self.levels:
            self.levels[key] = super()._level(c_noise)
        return self.levels[key]


def reachable(sampler: Sampler[Any], schedule: Schedule) -> bool:
    """Whether the sampler may start where the schedule ends."""
    return sampler.reaches_noise or not schedule.noise.is_noise


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_what_says_nothing_at_the_end_of_a_schedule_is_refused(parameterization: str) -> None:
    """Pains 4: eps and score at alpha = 0, edm whose c_noise is infinite there, mu without steps; all others fit."""
    for text in SCHEDULES:
        schedule, error = made("schedule", text), refusal(schedule=text, parameterization=parameterization)
        if parameterization == "mu" and schedule.steps is None:
            assert error is not None
            assert "discrete schedule" in error.render(), text
            continue
        p = on(schedule, parameterization)
        a, _ = p.coefficients(schedule.noise)
        told = p.c_noise(schedule.noise)
        mute = schedule.noise.is_noise and (a == 0.0 or (told is not None and not math.isfinite(float(told))))
        assert (error is not None) == mute, text
        if error is not None:
            assert [(one.code, bool(one.fix)) for one in error.errors] == [("DK110", True)]
            assert "alpha = 0" in error.render()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_is_refused_where_it_cannot_work(sampler: str) -> None:
    """Schedules that it cannot start on, or that have no steps; predictions without the head that it reads."""
    one: Sampler[Any] = made("sampler", sampler)
    for text in SCHEDULES:
        schedule = made("schedule", text)
        head = {"parameterization": "{name: learned-range, inner: x0}"} if one.needs else {}
        error = refusal(sampler=sampler, schedule=text, **head)
        fits = reachable(one, schedule) and (schedule.steps is not None or not one.discrete_only)
        assert (error is None) == fits, (text, error and error.render())
        if error is not None:
            assert {fault.code for fault in error.errors} <= {"DK112", "DK116"}
            assert all(fault.fix for fault in error.errors)
    for text in PARAMETERIZATIONS:
        provided = made("parameterization", text).provides
        error = refusal(sampler=sampler, parameterization=text)
        assert (error is None) == all(aux in provided for aux in one.needs), (text, error and error.render())
        if error is not None:
            assert [fault.code for fault in error.errors] == ["DK111"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_follows_the_exact_law_on_every_schedule(sampler: str) -> None:
    """Identities D4, D9, D15: the map of the probability flow, or the moments of the samples."""
    one: Sampler[Any] = made("sampler", sampler)
    oracle: GaussianOracle = gaussian()
    for text in SCHEDULES:
        schedule = made("schedule", text)
        if not reachable(one, schedule) or (one.discrete_only and schedule.steps is None):
            continue
        count = 512 if one.stochastic else 6
        levels, noise = path(schedule, 50 if one.nfe(1) else 2), SampleNoise(5, range(count))
        start = noise.initial((2,)).double()
        z = sample(exact, one, levels, float(levels[0].sigma) * start, noise=noise).double()
        assert bool(torch.isfinite(z).all()), text
        room = ROOM.get(sampler, 0.15)
        if one.stochastic:
            torch.testing.assert_close(z.mean(0), oracle.mean, rtol=0, atol=room, msg=lambda m, t=text: f"{t}: {m}")
            torch.testing.assert_close(z.T.cov(), oracle.matrix, rtol=0, atol=room, msg=lambda m, t=text: f"{t}: {m}")
        else:
            want = oracle.flow(float(levels[0].sigma) * start, levels[0], Level(float(levels[-1].alpha), 0.0))
            torch.testing.assert_close(z, want, rtol=0, atol=room, msg=lambda m, t=text: f"{t}: {m}")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_legal_combination_is_the_exact_denoiser(schedule: str) -> None:
    """Pains 5, identity A8: what a network predicts changes no sample, whatever the sampler; c_noise is a float32."""
    curve, count = made("schedule", schedule), 0
    samplers = [s for s in SAMPLERS if not refusal(sampler=s, schedule=schedule, **heads(s))]
    levels, noises = path(curve, 4), [SampleNoise(2, range(3)) for _ in range(2)]
    x = float(levels[0].sigma) * noises[0].initial((2,)).double()
    wanted = {s: sample(exact, made("sampler", s), levels, x, noise=SampleNoise(2, range(3))) for s in samplers}
    for text in PARAMETERIZATIONS:
        if refusal(schedule=schedule, parameterization=text):
            continue
        p = on(curve, text)
        model = Model(Cached(curve, p), p, curve)
        for s in samplers:
            if refusal(sampler=s, parameterization=text):
                continue
            got = sample(model, made("sampler", s), levels, x, noise=SampleNoise(2, range(3)))
            want = wanted[s].to(got.dtype) if "learned-range" in text or not made("sampler", s).needs else got
            size = max(1.0, float(want.abs().max()))
            torch.testing.assert_close(
                got / size, want / size, rtol=0, atol=2e-3, msg=lambda m, c=(text, s): f"{c}: {m}"
            )
            count += 1
    assert count >= 2 * len(samplers)


def heads(sampler: str) -> dict[str, str]:
    """A prediction with the outputs that the sampler reads, legal on every schedule."""
    return {"parameterization": "{name: learned-range, inner: x0}"} if made("sampler", sampler).needs else {}


def test_the_matrix_is_that_of_everything_installed() -> None:
    """A plugin that adds a component is in the matrix; one that needs options says them in OPTIONS."""
    for kind, found in (("schedule", SCHEDULES), ("parameterization", PARAMETERIZATIONS), ("sampler", SAMPLERS)):
        for text in found:
            assert made(kind, text) is not None
    assert len(list(product(SCHEDULES, PARAMETERIZATIONS, SAMPLERS))) >= 2 * 3 * 3
