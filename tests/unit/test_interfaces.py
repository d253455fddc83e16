"""The interfaces carry what is not built here: each case is a component of a few lines, written as a stranger would."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from diffkit import (
    FLOW,
    Codec,
    Data,
    DataSpec,
    Denoiser,
    Estimate,
    Grid,
    Guidance,
    InMemorySplit,
    Level,
    Loss,
    Model,
    Network,
    Objective,
    Parameterization,
    RandomStreams,
    SampleNoise,
    Sampler,
    Schedule,
    Weighting,
    build,
    guide,
    sample,
    scalar,
)
from diffkit.basics.grid import Trailing
from diffkit.ddpm.objective import Simple
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.sampler import Ancestral
from diffkit.ddpm.schedule import Linear
from diffkit.sampler import Noise
from diffkit.scalar import Scalar
from diffkit.testing import GaussianOracle

F64 = torch.float64


@dataclass(frozen=True)
class VE(Schedule):
    """alpha = 1, sigma = t."""

    t_clean: float = 0.002
    t_noise: float = 80.0

    def level(self, t: Scalar) -> Level:
        return Level(t * 0.0 + 1.0, t)

    def time(self, level: Level) -> Scalar:
        return scalar.divide(level.sigma, level.alpha)


@dataclass(frozen=True)
class Rectified(Schedule):
    """alpha = 1 - t, sigma = t."""

    def level(self, t: Scalar) -> Level:
        return Level(1.0 - t, t)

    def time(self, level: Level) -> Scalar:
        return level.sigma / (level.alpha + level.sigma)


@dataclass(frozen=True)
class EDM(Parameterization):
    """F of Karras et al. 2022 (arXiv:2206.00364), eq. 7, as a row of the plane."""

    sigma_data: float = 0.5

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        r = scalar.hypot(level.sigma, self.sigma_data * level.alpha)
        return level.sigma / self.sigma_data / r, -self.sigma_data * level.alpha / r

    def c_in(self, level: Level) -> Scalar:
        return 1.0 / scalar.hypot(level.sigma, self.sigma_data * level.alpha)

    def c_noise(self, level: Level) -> Scalar:
        return scalar.log(scalar.divide(level.sigma, level.alpha)) / 4.0


class Flow(Parameterization):
    """u = eps - x0."""

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        return -1.0, 1.0


@dataclass(frozen=True)
class Heun(Sampler[None]):
    """EDM's Algorithm 2 with churn, in the SIGMA chart."""

    churn: float = 0.0
    order = 2
    stochastic = True

    def nfe(self, n: int) -> int:
        return 2 * n - 1

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        raised = Level(t.alpha, t.sigma * (1.0 + self.churn))
        if self.churn:
            x = x + math.sqrt(raised.sigma**2 - t.sigma**2) * noise(x)
        first = denoise(x, raised)
        euler = first.step_to(s)
        if s.is_clean:
            return euler, None
        dt = s.sigma / s.alpha - raised.sigma / raised.alpha
        return s.alpha * (x / raised.alpha + dt / 2 * (first.eps + denoise(euler, s).eps)), None


@dataclass(frozen=True)
class TwoStep(Sampler[Tensor]):
    """A multistep method: its state is the estimate of the step before."""

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        x0 = denoise(x, t).x0
        guess = x0 if state is None or s.is_clean else 1.5 * x0 - 0.5 * state
        return Estimate.from_x0(x, t, guess).step_to(s), x0


@dataclass(frozen=True)
class LearnedRange(Parameterization):
    """A second head that says where between beta tilde and beta the variance lies."""

    inner: Parameterization
    provides = ("variance_fraction",)

    def coefficients(self, level: Level) -> tuple[Scalar, Scalar]:
        return self.inner.coefficients(level)

    def out_channels(self, channels: int) -> int:
        return 2 * channels

    def decode(self, y: Tensor, x: Tensor, level: Level) -> Estimate:
        mean, v = y.chunk(2, dim=1)
        known = self.inner.decode(mean, x, level)
        return Estimate(level, known.x0, known.eps, {"variance_fraction": (v + 1) / 2})


class Exact(Network):
    """The optimal network of N(0, deviation^2), for any parameterization; it looks its level up by c_noise."""

    def __init__(self, parameterization: Parameterization, schedule: Schedule, deviation: float = 0.5) -> None:
        super().__init__()
        self.oracle = GaussianOracle(torch.zeros(1, dtype=F64), deviation**2)
        self.parameterization, self.schedule = parameterization, schedule
        self.scale = torch.nn.Parameter(torch.ones((), dtype=F64))
        self.labels: Tensor | None = None

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.labels = label
        c = float(c_noise[0].double())
        t = (
            c + 1.0
            if self.schedule.steps
            else self.schedule.t_clean + c / 1000 * (self.schedule.t_noise - self.schedule.t_clean)
        )
        if type(self.parameterization).c_noise is not Parameterization.c_noise:
            t = math.exp(4.0 * c)
        level = self.schedule.level(t)
        known = self.oracle(x / self.parameterization.c_in(level), level)
        return self.scale * self.parameterization.target(known.x0, known.eps, level)


LAW = GaussianOracle(torch.zeros(1, dtype=F64), 0.25)


def exact_map(x: Tensor, t: Level, s: Level) -> Tensor:
    return LAW.flow(x, t, s)


def test_edm_preconditioning_keeps_input_target_and_output_at_unit_variance() -> None:
    edm = EDM(0.5)
    for sigma in (0.01, 0.5, 3.0):
        level = Level(1.0, sigma)
        x0 = 0.5 * torch.randn(200_000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
        eps = torch.randn(200_000, 1, dtype=F64, generator=torch.Generator().manual_seed(1))
        assert float((edm.c_in(level) * level.add_noise(x0, eps)).std()) == pytest.approx(1.0, abs=0.01)
        assert float(edm.target(x0, eps, level).std()) == pytest.approx(1.0, abs=0.01)
        # EDM's own form: F = (x0 - c_skip x) / c_out
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / math.hypot(sigma, 0.5)
        literal = (x0 - c_skip * level.add_noise(x0, eps)) / c_out
        torch.testing.assert_close(edm.target(x0, eps, level), literal)
        torch.testing.assert_close(edm.weight(level), 1 / c_out**2)


def test_heun_with_edm_preconditioning_follows_the_exact_flow() -> None:
    model = Model(Exact(EDM(), VE()), EDM(), VE())
    levels = [Level(1.0, float(s)) for s in torch.linspace(80**0.2, 0.01**0.2, 101, dtype=F64) ** 5]
    x = 80.0 * torch.tensor([[-1.0], [0.3], [2.0]], dtype=F64)
    found = sample(model, Heun(), levels, x)
    torch.testing.assert_close(found, exact_map(x, levels[0], levels[-1]), rtol=2e-3, atol=1e-6)


def test_churn_raises_the_level_and_asks_the_model_there() -> None:
    model = Model(Exact(EDM(), VE()), EDM(), VE())
    asked: list[float] = []

    def spy(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        asked.append(float(level.sigma))
        return model(x, level, **cond)

    levels = [Level(1.0, 1.0), Level(1.0, 0.5), Level(1.0, 0.25)]
    sample(spy, Heun(churn=0.1), levels, torch.ones(2, 1, dtype=F64))
    assert asked == pytest.approx([1.1, 0.5, 0.55, 0.25])


def test_a_flow_model_starts_at_pure_noise_and_any_sampler_may_use_it() -> None:
    model = Model(Exact(Flow(), Rectified()), Flow(), Rectified())
    levels = Trailing().levels(Rectified(), 200)
    assert levels[0].is_noise
    x = torch.tensor([[1.0], [-0.4]], dtype=F64)
    found = sample(model, TwoStep(), levels, x)
    torch.testing.assert_close(found, 0.5 * x, rtol=0.02, atol=1e-6)
    assert FLOW.clock(levels[0]) == 1.0


def test_a_network_is_not_tied_to_its_schedule() -> None:
    """Pains 5, 21: a model trained on one curve answers at levels of another, with the same (x0, eps)."""
    model = Model(Exact(Eps(), Linear()), Eps(), Linear())
    for level in (Level(1.0, 2.0), Level(0.2, 0.4), Linear().level(300.0)):
        x = level.alpha * torch.tensor([[0.7]], dtype=F64)
        torch.testing.assert_close(model(x, level).x0, LAW(x, level).x0, rtol=1e-3, atol=0)
        assert model(x, level).level is level


def test_learned_variance_reaches_the_sampler_through_aux() -> None:
    class TwoHeads(Network):
        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
            return torch.cat([torch.zeros_like(x), torch.ones_like(x)], 1)

    model = Model(TwoHeads(), LearnedRange(Eps()), Linear())
    levels = Trailing().levels(Linear(), 5)
    x = torch.ones(2, 1, dtype=F64)
    learned = sample(model, Ancestral("learned"), levels, x)
    torch.testing.assert_close(learned, sample(model, Ancestral("large"), levels, x))
    assert model.parameterization.out_channels(3) == 6


def test_guidance_is_a_function_of_denoisers_and_may_use_gradients() -> None:
    @dataclass(frozen=True)
    class TowardsOne(Guidance):
        strength: float = 1.0

        def __call__(self, denoise: Denoiser) -> Denoiser:
            def guided(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
                with torch.enable_grad():
                    leaf = x.detach().requires_grad_()
                    estimate = denoise(leaf, level, **cond)
                    (slope,) = torch.autograd.grad((estimate.x0 - 1).square().sum(), leaf)
                return estimate.with_x0(estimate.x0 - self.strength * slope)

            return guided

    x = torch.zeros(3, 1, dtype=F64)
    levels = Trailing().levels(Linear(), 10)
    plain = sample(LAW, Ancestral(), levels, x)
    guided = sample(TowardsOne()(LAW), Ancestral(), levels, x)
    assert bool((guided > plain).all())
    assert not guided.requires_grad


def test_a_codec_changes_what_diffuses() -> None:
    class Halve(Codec):
        def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
            return x.reshape(len(x), -1, 2).mean(-1)

        def decode(self, z: Tensor) -> Tensor:
            return z.repeat_interleave(2, dim=-1)

        def spec(self, data: DataSpec) -> DataSpec:
            return DataSpec(data.channels // 2)

    assert Halve().spec(DataSpec(8)).channels == 4
    assert Halve().decode(Halve().encode(torch.ones(3, 8))).shape == (3, 8)


def test_conditions_reach_the_network() -> None:
    network = Exact(Eps(), Linear())
    model = Model(network, Eps(), Linear())
    model(torch.ones(2, 1, dtype=F64), Linear().level(5.0), label=torch.tensor([3, 4]))
    assert network.labels is not None
    assert network.labels.tolist() == [3, 4]


def test_an_objective_may_use_the_average_and_a_weighting_is_one_line() -> None:
    class HalfSNR(Weighting):
        def __call__(self, level: Level) -> Scalar:
            return 0.5 * level.snr

    class Consistency(Objective):
        def __call__(
            self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
        ) -> Loss:
            assert ema is not None
            level = model.schedule.level(torch.full((len(x0),), 10))
            x = level.add_noise(x0, noise.normal("noise", x0))
            each = (model(x, level).x0 - ema(x, level).x0.detach()).square().flatten(1).mean(1)
            return Loss(each.mean(), each.detach(), torch.full((len(x0),), 10))

    model = Model(Exact(Eps(), Linear()), Eps(), Linear())
    draws = RandomStreams(0, 1, 4)
    x0 = torch.zeros(4, 1, dtype=F64)
    assert Consistency()(model, x0, draws, ema=model).mean.item() == 0.0

    class Zero(Network):
        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
            return torch.zeros_like(x)

    zero = Model(Zero(), Eps(), Linear())
    plain, half = Simple()(zero, x0, draws.rows(0)), Simple(weighting=HalfSNR())(zero, x0, draws.rows(0))
    torch.testing.assert_close(half.each, plain.each / 2)


def test_a_grid_and_a_data_set_are_a_few_lines() -> None:
    class Halving(Grid):
        def points(self, schedule: Schedule, n: int) -> list[float]:
            return [schedule.t_noise / 2**j for j in range(n)]

    assert [lv.sigma for lv in Halving().levels(Rectified(), 3)] == [1.0, 0.5, 0.25, 0.0]
    assert Halving().times(Linear(steps=8), 6) == [8.0, 5.0, 4.0, 3.0, 2.0, 1.0]

    class Ones(Data):
        spec = DataSpec(2)

        def split(self, part: str) -> InMemorySplit:
            return InMemorySplit(torch.ones(3, 2))

    assert len(Ones().split("train")) == 3
    torch.testing.assert_close(Ones().to_model_range(Ones().split("train")[0][0]), torch.ones(2))


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    """Pains 16."""
    alone, together = SampleNoise(7, [2]), SampleNoise(7, [0, 1, 2, 3])
    assert torch.equal(alone.initial((3,))[0], together.initial((3,))[2])
    for step in (0, 1, 63, 64, 200, 5):
        a, b = alone.at_step(step), together.at_step(step)
        for _ in range(2):
            assert torch.equal(a(torch.zeros(1, 3))[0], b(torch.zeros(4, 3))[2])


def test_one_guidance_needs_no_list() -> None:
    oracle = GaussianOracle(torch.tensor([3.0, 3.0]), 0.25)
    clipped = guide(oracle, build("guidance", "clip"))
    assert float(clipped(torch.zeros(1, 2), Level(0.6, 0.8)).x0.max()) == 1.0
