"""An estimate as a network said it is the pair (x0, eps), computed only where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffkit import Estimate, Level, Model, Network, Progress, SampleNoise, sample
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
    return Estimate.decoded(level, X, y, given_rows), Estimate(level, p * X + q * y, r * X + s * y)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@given(rows, numbers, numbers)
def test_readings(four: tuple[float, float, float, float], a: float, b: float) -> None:
    said, pair = both(four)
    want = a * pair.x0 + b * pair.eps
    close(said.read(a, b), want)
    close(pair.read(a, b), want)
    per_example = torch.tensor([a, 0.5], dtype=F64)
    close(said.read(per_example, b), per_example[:, None] * pair.x0 + b * pair.eps)


@given(rows)
def test_everything_made_of_it(four: tuple[float, float, float, float]) -> None:
    said, pair = both(four)
    other_said, other_pair = both(four, Z)
    s = Level(0.9, 0.4)
    close(said.score, pair.score)
    close(said.at(s, 0.3, Z), pair.at(s, 0.3, Z))
    close(said.at(s, torch.tensor([0.1, 0.2], dtype=F64), Z), pair.at(s, torch.tensor([0.1, 0.2], dtype=F64), Z))
    for weight in (2.5, torch.tensor([0.3, 2.0], dtype=F64)):
        got, want = said.lerp(other_said, weight), pair.lerp(other_pair, weight)
        close(got.x0, want.x0)
        close(got.eps, want.eps)
    close(said.with_x0(Z).eps, pair.with_x0(Z).eps)


def test_mixing_keeps_what_else_the_second_says() -> None:
    first, second = both((0.5, 1.0, 0.2, 1.0))[0].told(frac=X), both((0.5, 1.0, 0.2, 1.0), Z)[0].told(frac=Y)
    assert first.lerp(second, 2.0).aux["frac"] is Y


def test_telling_more_keeps_what_was_told() -> None:
    said = both((0.5, 1.0, 0.2, 1.0))[0].told(frac=X)
    more = said.told(Level(1.6, 1.2), width=Y)
    assert more.level == Level(1.6, 1.2)
    assert more.aux["frac"] is X
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


def test_a_step_is_two_operations_and_x0_is_computed_once() -> None:
    said = both((1.25, -0.75, 0.0, 1.0))[0]
    with Operations() as step:
        said.at(Level(0.9, 0.4))
    with Operations() as decoding:
        said.x0, said.x0, said.eps, said.eps  # noqa: B018
    assert (step.count, decoding.count) == (2, 2)


@dataclass(eq=False)
class Rude(Network):
    """Keeps what it is told, and writes into it."""

    def __post_init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.told.append(float(c_noise[0]))
        c_noise.mul_(1000.0)
        return 0.1 * x


@pytest.mark.parametrize("inference", [False, True])
def test_a_network_that_writes_into_its_time_is_told_it_anew(inference: bool) -> None:
    network, level = Rude(), Linear().level(500.0)
    model = Model(network, Eps(), Linear())
    with torch.inference_mode(inference):
        for _ in range(3):
            model(X, level)
    assert network.told == [499.0] * 3


def test_watching_changes_nothing() -> None:
    model, levels = Model(Rude(), Eps(), Linear()), Trailing().levels(Linear(), 5)
    steps: list[Progress] = []
    seen = sample(model, Ancestral(), levels, X, noise=SampleNoise(0, range(2)), on_step=steps.append)
    unseen = sample(model, Ancestral(), levels, X, noise=SampleNoise(0, range(2)))
    assert torch.equal(seen, unseen)
    assert [step.nfe for step in steps] == [1, 2, 3, 4, 5]
    assert all(step.estimate is not None for step in steps)
