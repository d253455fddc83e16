"""An estimate as a network said it is the pair (x0, eps), computed only where it is asked for."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffkit import Estimate, Level, Model, Network, SampleNoise, StepInfo, build, sample
from diffkit.basics.grid import Trailing
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.sampler import Ancestral
from diffkit.ddpm.schedule import Linear

F64 = torch.float64
X, Y, Z = (torch.randn(2, 3, dtype=F64, generator=torch.Generator().manual_seed(i)) for i in range(3))
numbers = st.floats(-4, 4, allow_subnormal=False)
rows = st.tuples(numbers, numbers, numbers, numbers)


def both(given_rows: tuple[float, float, float, float], y: Tensor = Y) -> tuple[Estimate, Estimate]:
    """The same estimate, said and decoded."""
    p, q, r, s = given_rows
    level = Level(0.8, 0.6)
    with torch.no_grad():
        said = Estimate.decoded(level, X, y, given_rows)
    return said, Estimate(level, p * X + q * y, r * X + s * y)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@given(rows, numbers, numbers)
def test_readings(four: tuple[float, float, float, float], a: float, b: float) -> None:
    said, pair = both(four)
    want = a * pair.x0 + b * pair.eps
    close(said.combine(a, b), want)
    close(pair.combine(a, b), want)
    per_example = torch.tensor([a, 0.5], dtype=F64)
    close(said.combine(per_example, b), per_example[:, None] * pair.x0 + b * pair.eps)


@given(rows)
def test_everything_made_of_it(four: tuple[float, float, float, float]) -> None:
    said, pair = both(four)
    other_said, other_pair = both(four, Z)
    s = Level(0.9, 0.4)
    close(said.score, pair.score)
    close(said.step_to(s, 0.3, Z), pair.step_to(s, 0.3, Z))
    close(
        said.step_to(s, torch.tensor([0.1, 0.2], dtype=F64), Z), pair.step_to(s, torch.tensor([0.1, 0.2], dtype=F64), Z)
    )
    for weight in (2.5, torch.tensor([0.3, 2.0], dtype=F64)):
        got, want = said.interpolate(other_said, weight), pair.interpolate(other_pair, weight)
        close(got.x0, want.x0)
        close(got.eps, want.eps)
    close(said.with_x0(Z).eps, pair.with_x0(Z).eps)


def test_mixing_keeps_what_else_the_second_says() -> None:
    first, second = (
        both((0.5, 1.0, 0.2, 1.0))[0].with_aux(variance_fraction=X),
        both((0.5, 1.0, 0.2, 1.0), Z)[0].with_aux(variance_fraction=Y),
    )
    assert first.interpolate(second, 2.0).aux["variance_fraction"] is Y


def test_telling_more_keeps_what_was_told() -> None:
    said = both((0.5, 1.0, 0.2, 1.0))[0].with_aux(variance_fraction=X)
    more = said.at_level(Level(1.6, 1.2)).with_aux(width=Y)
    assert more.level == Level(1.6, 1.2)
    assert more.aux["variance_fraction"] is X
    assert more.aux["width"] is Y
    assert said.level == Level(0.8, 0.6)
    assert "width" not in said.aux
    close(more.x0, said.x0)
    close(more.eps, said.eps)


def test_the_pair_cannot_be_assigned() -> None:
    said = both((0.5, 1.0, 0.2, 1.0))[0]
    with pytest.raises(AttributeError):
        said.x0 = X  # type: ignore[misc]


class Operations(TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


class Answer(Network):
    """Says the same, for nothing."""

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return Y


def test_x0_is_computed_once() -> None:
    said = both((1.25, -0.75, 0.0, 1.0))[0]
    with Operations() as decoding:
        said.x0, said.x0, said.eps, said.eps  # noqa: B018
    assert decoding.count == 2


@pytest.mark.parametrize("name", ["ddim", "straight"])
def test_a_step_is_two_operations_and_telling_the_time(name: str) -> None:
    """On levels that are equal to known ones, too."""
    model, sampler = Model(Answer(), Eps(), Linear()), build("sampler", name)
    for _ in range(2):
        t, s = Trailing().levels(Linear(), 10)[:2]
        with torch.no_grad(), Operations() as step:
            sampler.step(model, X, t, s, None, torch.zeros_like)
        assert step.count == 3


def test_guidance_mixes_one_tensor() -> None:
    model, level = Model(Answer(), Eps(), Linear()), Linear().level(500.0)
    with torch.no_grad():
        first, second = model(X, level), model(X, level)
        with Operations() as mixing:
            first.interpolate(second, 3.0)
    assert mixing.count == 2


def test_gradients_do_not_depend_on_who_reads_first() -> None:
    x = X.clone().requires_grad_()
    estimate = Model(Answer(), Eps(), Linear())(x, Linear().level(500.0))
    with torch.no_grad():
        estimate.x0, estimate.eps  # noqa: B018
    (gradient,) = torch.autograd.grad(estimate.x0.sum(), x)
    close(gradient, torch.full_like(X, 1.0 / float(Linear().level(500.0).alpha)))
    with torch.no_grad():
        silent = Model(Answer(), Eps(), Linear())(x, Linear().level(500.0))
    assert not silent.x0.requires_grad


def test_types_are_promoted_as_torch_does() -> None:
    level = Level(0.8, 0.6)
    with torch.no_grad():
        assert Eps().decode(Y.bfloat16(), X.float(), level).x0.dtype == torch.float32
        assert Eps().decode(Y.float(), X, level).step_to(Level(0.9, 0.4)).dtype == F64


@pytest.mark.filterwarnings("ignore:Dynamo detected")
def test_a_model_may_be_transformed_copied_and_compiled() -> None:
    model, level = Model(Answer(), Eps(), Linear()), Linear().level(500.0)
    want = model(X, level).x0
    torch.func.grad(lambda x: model(x, level).x0.sum())(X)
    close(copy.deepcopy(model)(X, level).x0, want)
    close(torch.compile(lambda x: model(x, level).x0, backend="eager")(X), want)


def test_watching_changes_nothing() -> None:
    model, levels = Model(Answer(), Eps(), Linear()), Trailing().levels(Linear(), 5)
    steps: list[StepInfo] = []
    seen = sample(model, Ancestral(), levels, X, noise=SampleNoise(0, range(2)), on_step=steps.append)
    unseen = sample(model, Ancestral(), levels, X, noise=SampleNoise(0, range(2)))
    assert torch.equal(seen, unseen)
    assert [step.nfe for step in steps] == [1, 2, 3, 4, 5]
    assert all(step.estimate is not None for step in steps)
