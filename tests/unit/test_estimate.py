"""An estimate is an immutable pair (x0, eps), computed once when a model or an oracle makes it."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffkit import Estimate, Level, LevelError, Model, SampleNoise, Schedule, StepInfo, build, sample, scalar
from diffkit.basics.grid import Trailing
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.sampler import Ancestral
from diffkit.ddpm.schedule import Linear
from diffkit.scalar import Scalar

F64 = torch.float64
X, Y, Z = (torch.randn(2, 3, dtype=F64, generator=torch.Generator().manual_seed(i)) for i in range(3))
PAIR = Estimate(Level(0.8, 0.6), X, Y)
numbers = st.floats(-4, 4, allow_subnormal=False)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@given(numbers, numbers)
def test_combine(a: float, b: float) -> None:
    close(PAIR.combine(a, b), a * X + b * Y)
    per_example = torch.tensor([a, 0.5], dtype=F64)
    close(PAIR.combine(per_example, b), per_example[:, None] * X + b * Y)
    close(PAIR.combine(per_example, per_example), per_example[:, None] * (X + Y))


def test_step_to() -> None:
    s = Level(0.9, 0.4)
    close(PAIR.step_to(s), 0.9 * X + 0.4 * Y)
    close(PAIR.step_to(s, 0.3, Z), 0.9 * X + 0.07**0.5 * Y + 0.3 * Z)
    close(PAIR.step_to(s, 0.3, lambda x: Z), PAIR.step_to(s, 0.3, Z))
    close(PAIR.step_to(s, 0.3, Z, 0.2), 0.9 * X + 0.07**0.5 * Y + 0.2 * Z)
    rho = torch.tensor([0.1, 0.3], dtype=F64)
    want = 0.9 * X + (0.16 - rho**2).sqrt()[:, None] * Y + rho[:, None] * Z
    close(PAIR.step_to(s, rho, Z), want)
    with pytest.raises(TypeError, match="requires noise"):
        PAIR.step_to(s, 0.3)
    with pytest.raises(LevelError, match=r"rho = 0\.5"):
        PAIR.step_to(s, 0.5, Z)


def test_score_and_from_x0() -> None:
    close(PAIR.score, -Y / 0.6)
    close(Estimate.from_x0(0.8 * X + 0.6 * Y, PAIR.level, X).eps, Y)
    with pytest.raises(LevelError, match="undefined"):
        Estimate(Level(1.0, 0.0), X, Y).score  # noqa: B018


@pytest.mark.parametrize("weight", [2.5, torch.tensor([0.3, 2.0], dtype=F64)])
def test_interpolate_takes_level_and_aux_of_the_second(weight: Scalar) -> None:
    first, second = PAIR.with_aux(variance_fraction=X), Estimate(Level(1.6, 1.2), Z, X, {"variance_fraction": Y})
    w = weight[:, None] if isinstance(weight, Tensor) else weight
    got = first.interpolate(second, weight)
    close(got.x0, (1 - w) * X + w * Z)
    close(got.eps, (1 - w) * Y + w * X)
    assert got.level == second.level
    assert got.aux["variance_fraction"] is Y


def test_with_x0_keeps_x() -> None:
    changed = PAIR.with_x0(Z)
    assert changed.x0 is Z
    close(0.8 * Z + 0.6 * changed.eps, 0.8 * X + 0.6 * Y)


def test_with_aux_adds_to_the_known_entries() -> None:
    more = PAIR.with_aux(variance_fraction=X).at_level(Level(1.6, 1.2)).with_aux(width=Y)
    assert more.level == Level(1.6, 1.2)
    assert more.aux["variance_fraction"] is X
    assert more.aux["width"] is Y
    assert (more.x0, more.eps) == (X, Y)
    assert PAIR.level == Level(0.8, 0.6)
    assert not PAIR.aux


def test_is_immutable_picklable_copyable_and_short() -> None:
    estimate = PAIR.with_aux(variance_fraction=Z)
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.x0 = X  # type: ignore[misc]
    pickled = pickle.loads(pickle.dumps(estimate))  # noqa: S301
    for same in (pickled, copy.copy(estimate), copy.deepcopy(estimate)):
        assert torch.equal(same.x0, X)
        assert torch.equal(same.eps, Y)
        assert torch.equal(same.aux["variance_fraction"], Z)
        assert same.level == estimate.level
    assert repr(estimate) == "Estimate(Level(alpha=0.8, sigma=0.6), x0 and eps (2, 3), variance_fraction)"


class Operations(TorchDispatchMode):
    """Counts the tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


class Constant(nn.Module):
    """Returns Y without an operation."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return Y


@pytest.mark.parametrize("name", ["ddim", "straight"])
def test_a_first_order_step_takes_five_operations(name: str) -> None:
    """c_noise, two to decode x0, two to step."""
    model, sampler = Model(Constant(), Eps(), Linear()), build("sampler", name)
    t, s = Trailing().levels(Linear(), 10)[:2]
    with torch.no_grad(), Operations() as step:
        sampler.step(model, X, t, s, None, torch.zeros_like)
    assert step.count == 5


def test_changes_in_place_do_not_reach_an_estimate() -> None:
    model, level, x = Model(Constant(), Eps(), Linear()), Linear().level(500.0), X.clone()
    estimate = model(x, level)
    before = estimate.x0.clone()
    x.zero_()
    assert torch.equal(estimate.x0, before)


class Learned(nn.Module, Schedule):
    """sigma / alpha = scale t with a trained `scale`."""

    t_clean, t_noise = 0.001, 1.0

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=F64), requires_grad=False)

    def level(self, t: Scalar) -> Level:
        angle = scalar.atan2(float(self.scale) * t, 1.0)
        return Level(scalar.cos(angle), scalar.sin(angle))

    def time(self, level: Level) -> Scalar:
        return level.ratio / float(self.scale)


def test_a_learned_schedule_is_never_stale() -> None:
    schedule, network, level = Learned(), Constant(), Level(0.8, 0.4)
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    model = Model(network, Eps(), schedule)
    model(X, level)
    schedule.scale.fill_(2.0)
    model(X, level)
    torch.testing.assert_close(seen[0], torch.full((2,), 1000 * 0.499 / 0.999))
    torch.testing.assert_close(seen[1], torch.full((2,), 1000 * 0.249 / 0.999))


def test_gradients_of_both_parts() -> None:
    x = X.clone().requires_grad_()
    level = Linear().level(500.0)
    estimate = Model(Constant(), Eps(), Linear())(x, level)
    (gradient,) = torch.autograd.grad(estimate.x0.sum(), x)
    close(gradient, torch.full_like(X, 1.0 / float(level.alpha)))
    with torch.no_grad():
        assert not Model(Constant(), Eps(), Linear())(x, level).x0.requires_grad


def test_types_are_promoted_as_torch_does() -> None:
    level = Level(0.8, 0.6)
    assert Eps().decode(Y.bfloat16(), X.float(), level).x0.dtype == torch.float32
    assert Eps().decode(Y.float(), X, level).step_to(Level(0.9, 0.4)).dtype == F64


@pytest.mark.filterwarnings("ignore:Dynamo (detected|does not know):UserWarning")
def test_a_model_may_be_transformed_copied_and_compiled() -> None:
    model, level = Model(Constant(), Eps(), Linear()), Linear().level(500.0)
    want = model(X, level).x0
    torch.func.grad(lambda x: model(x, level).x0.sum())(X)
    close(copy.deepcopy(model)(X, level).x0, want)
    close(torch.compile(lambda x: model(x, level).x0, backend="eager")(X), want)


def test_watching_changes_nothing() -> None:
    model, levels = Model(Constant(), Eps(), Linear()), Trailing().levels(Linear(), 5)
    steps: list[StepInfo] = []
    seen = sample(model, Ancestral(), levels, X, noise=SampleNoise(0, range(2)), on_step=steps.append)
    unseen = sample(model, Ancestral(), levels, X, noise=SampleNoise(0, range(2)))
    assert torch.equal(seen, unseen)
    assert [step.nfe for step in steps] == [1, 2, 3, 4, 5]
    assert all(step.estimate is not None for step in steps)
