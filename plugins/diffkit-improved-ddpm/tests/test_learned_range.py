"""The learned variance and the hybrid loss against the formulas, the authors' code, and the core's bound."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffkit_improved_ddpm.objective import Hybrid
from diffkit_improved_ddpm.parameterization import LearnedRange
from diffkit_improved_ddpm.schedule import Cosine
from torch import Tensor

from diffkit import (
    Data,
    DataSpec,
    InMemorySplit,
    Level,
    Model,
    Network,
    Part,
    RandomStreams,
    Scalar,
    Schedule,
    Times,
    Weighting,
    sample,
    transition,
)
from diffkit.basics.grid import Trailing
from diffkit.ddpm.objective import VLB, Simple
from diffkit.ddpm.parameterization import X0, Eps, Mu
from diffkit.ddpm.sampler import Ancestral
from diffkit.ddpm.schedule import Linear

GOLDEN = json.loads((Path(__file__).parent / "golden" / "improved-diffusion.json").read_text(encoding="utf-8"))
TIMES = torch.tensor([1, 2, 3, 10, 25, 49, 50])
X_0, NOISE, OUTPUT = (torch.tensor(GOLDEN[name], dtype=torch.float64) for name in ("x0", "noise", "output"))


@dataclass(frozen=True)
class Images(Data):
    bins: int | None = 256

    @property
    def spec(self) -> DataSpec:
        return DataSpec(1, (2, 2), bins=self.bins)

    def split(self, part: Part) -> InMemorySplit:
        return InMemorySplit(X_0)


class Says(Network):
    """Always the same output, which can be learned."""

    def __init__(self, output: Tensor = OUTPUT) -> None:
        super().__init__()
        self.output = torch.nn.Parameter(output.clone())

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.output


@dataclass(frozen=True)
class Told(Times):
    t: Tensor = field(default_factory=lambda: TIMES)

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        return self.t

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor:
        return torch.full((len(t),), 2.0)


class ToldDraws(RandomStreams):
    def normal(self, stream: str, like: Tensor) -> Tensor:
        return NOISE


def loss_of(objective: Hybrid | VLB | Simple, network: Network) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    loss = objective(Model(network, LearnedRange(Eps()), Cosine(50)), X_0, ToldDraws(0, 0, len(X_0)))
    return loss.mean, loss.each, dict(loss.parts)


def test_decoding_keeps_the_rows_of_the_inner_prediction_and_adds_frac() -> None:
    """Equation 15; identity C1."""
    for inner in (Eps(), X0(), Mu(Linear())):
        p = LearnedRange(inner)
        level = Linear().level(300.0)
        x0, eps, v = (torch.randn(3, 2, 4, dtype=torch.float64) for _ in range(3))
        x = level.add_noise(x0, eps)
        estimate = p.decode(torch.cat([inner.target(x0, eps, level), v], 1), x, level)
        torch.testing.assert_close(estimate.x0, x0, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(estimate.eps, eps, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(estimate.aux["variance_fraction"], (v + 1) / 2)
        assert p.weight(level) == inner.weight(level)
        assert p.full_precision == inner.full_precision
        assert p.out_channels(3) == 6
    with pytest.raises(ValueError, match="predicts a variance already"):
        LearnedRange(LearnedRange(Eps()))


def test_the_step_is_that_of_the_authors() -> None:
    """Their float32 tables bound the agreement; eps at t = T = 50, where alpha is 1e-3, loses three digits more."""
    schedule, mean = Cosine(50), torch.tensor(GOLDEN["mean"], dtype=torch.float64)
    log_variance = torch.tensor(GOLDEN["log_variance"], dtype=torch.float64)
    model = Model(Says(), LearnedRange(Eps()), schedule)
    for i, t in enumerate(TIMES.tolist()):
        at, before = schedule.level(float(t)), schedule.level(float(t - 1))
        x = at.add_noise(X_0, NOISE)
        one = lambda sign: Ancestral("learned").step(model, x, at, before, None, lambda z: torch.full_like(z, sign))[0]  # noqa: B023, E731
        up, down = one(1.0)[i], one(-1.0)[i]
        torch.testing.assert_close((up + down) / 2, mean[i], rtol=2e-4, atol=2e-4)
        if t > 1:
            torch.testing.assert_close(2 * torch.log((up - down) / 2), log_variance[i], rtol=2e-5, atol=2e-5)


def test_the_hybrid_loss_is_that_of_the_authors() -> None:
    """Pains 12: mse + vb T / 1000, bits per dimension. At t = 1 they approximate the Gaussian cdf by a tanh."""
    _, each, parts = loss_of(Hybrid(Images(), times=Told()), Says())
    mse, bound = (torch.tensor(GOLDEN[name], dtype=torch.float64) for name in ("mse", "vb"))
    torch.testing.assert_close(each[1:].double(), (mse + bound)[1:], rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(each[0].double(), (mse + bound)[0], rtol=5e-2, atol=1e-6)
    assert parts["simple"].item() == pytest.approx(mse.mean().item(), rel=1e-5)
    assert parts["bound"].item() == pytest.approx(bound.mean().item(), rel=5e-2)


def test_the_parts_are_the_simple_loss_and_the_bound_of_the_core() -> None:
    """VLB is T times the term in nats, so hybrid = simple + scale VLB / ln 2."""
    for scale in (0.001, 0.5, 0.0):
        mean, each, _ = loss_of(Hybrid(Images(), scale=scale, times=Told()), Says())
        _, simple, _ = loss_of(Simple(times=Told()), Says())
        _, bound, _ = loss_of(VLB(Images(), "learned", times=Told()), Says())
        torch.testing.assert_close(each, simple + scale * bound / math.log(2))
        torch.testing.assert_close(mean, 2.0 * each.mean())  # the correction of the times


def test_a_weighting_is_that_of_the_simple_loss() -> None:
    """Pains 12: 2 on |x0 - x0_hat|^2 is 2 / snr on the error of eps."""

    class Two(Weighting):
        def __call__(self, level: Level) -> Scalar:
            return torch.full_like(torch.as_tensor(level.sigma), 2.0)

    _, plain, _ = loss_of(Hybrid(Images(), scale=0.0, times=Told()), Says())
    _, weighted, _ = loss_of(Hybrid(Images(), scale=0.0, weighting=Two(), times=Told()), Says())
    torch.testing.assert_close(weighted, plain * 2.0 / Cosine(50).level(TIMES).snr, rtol=1e-5, atol=0)


def test_the_bound_trains_the_variance_only() -> None:
    network = Says()
    mean, _, _ = loss_of(Hybrid(Images(), times=Told()), network)
    (whole,) = torch.autograd.grad(mean, network.output)
    (simple,) = torch.autograd.grad(loss_of(Simple(times=Told()), network)[0], network.output)
    (bound,) = torch.autograd.grad(loss_of(VLB(Images(), "learned", times=Told()), network)[0], network.output)
    torch.testing.assert_close(whole[:, :1], simple[:, :1])
    torch.testing.assert_close(whole[:, 1:], 0.001 / math.log(2) * bound[:, 1:])
    assert bound[:, :1].abs().min() > 0
    assert whole[:, 1:].abs().min() > 0


def test_the_simple_loss_ignores_the_second_head() -> None:
    network = Says()
    (slope,) = torch.autograd.grad(loss_of(Simple(times=Told()), network)[0], network.output)
    assert slope[:, :1].abs().min() > 0
    assert not slope[:, 1:].any()


@pytest.mark.slow
def test_the_learned_variance_finds_the_true_one() -> None:
    """Identity D7: for data of deviation s the best variance is V_s beta / V_t, which lies in the range for s <= 1."""
    schedule, t, s2 = Linear(), 500, 0.3
    at, before = schedule.level(float(t)), schedule.level(float(t - 1))
    large, small = transition.spread(at, before) ** 2, transition.posterior(at, before) ** 2
    true = large * (before.alpha**2 * s2 + before.sigma**2) / (at.alpha**2 * s2 + at.sigma**2)
    want = math.log(true / small) / math.log(large / small)
    source = torch.Generator().manual_seed(0)
    x0 = math.sqrt(s2) * torch.randn(200_000, 1, generator=source, dtype=torch.float64)

    class Exact(Network):
        def __init__(self) -> None:
            super().__init__()
            self.v = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
            eps = at.sigma * x / (at.alpha**2 * s2 + at.sigma**2)
            return torch.cat([eps, self.v.expand_as(x)], 1)

    network = Exact()
    model = Model(network, LearnedRange(Eps()), schedule)
    objective = Hybrid(Images(None), scale=1.0, times=Told(torch.full((len(x0),), t)))
    for _ in range(30):  # Newton's method on one number
        mean = objective(model, x0, RandomStreams(0, 0, len(x0))).mean
        (slope,) = torch.autograd.grad(mean, network.v, create_graph=True)
        (bend,) = torch.autograd.grad(slope, network.v)
        with torch.no_grad():
            network.v -= (slope / bend).detach()
    assert (network.v.item() + 1) / 2 == pytest.approx(want, abs=0.02)
    assert 0 < want < 1


def test_a_respaced_process_is_a_grid() -> None:
    """Identity A14: beta'_i = 1 - abar_{tau_i} / abar_{tau_{i-1}} makes tables that a grid does without."""
    from diffkit import Discrete

    schedule, times = Cosine(50), GOLDEN["spaced_times"]
    betas = torch.tensor(GOLDEN["spaced_betas"], dtype=torch.float64)
    spaced = Discrete(betas)
    levels = [schedule.level(float(t)) for t in [*reversed(times), 0]]
    for own, level in zip(Trailing().levels(spaced, len(times)), levels, strict=True):
        assert own.alpha == pytest.approx(level.alpha, rel=1e-12)
        assert own.sigma == pytest.approx(level.sigma, rel=1e-12)
    for i, (t, s) in enumerate(pairwise(levels)):
        beta = betas[len(times) - 1 - i].item()
        assert transition.spread(t, s) ** 2 == pytest.approx(beta, rel=1e-10)

    class Bounded(Network):
        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
            return torch.cat([torch.tanh(x), torch.sin(x)], 1)

    x = torch.randn(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for variance in ("small", "large", "learned"):
        runs = [
            sample(Model(Bounded(), LearnedRange(Eps()), curve), Ancestral(variance), path, x)  # type: ignore[arg-type]
            for curve, path in ((schedule, levels), (spaced, Trailing().levels(spaced, len(times))))
        ]
        torch.testing.assert_close(runs[0], runs[1], rtol=1e-9, atol=1e-9)


def test_levels_of_tensors_keep_their_shapes() -> None:
    level = Level(torch.full((3,), 0.6, dtype=torch.float64), torch.full((3,), 0.8, dtype=torch.float64))
    estimate = LearnedRange(X0()).decode(torch.ones(3, 4, 5, dtype=torch.float64), torch.ones(3, 2, 5), level)
    assert estimate.aux["variance_fraction"].shape == estimate.x0.shape == (3, 2, 5)
