"""Strata of any law of times, and the quantile that such laws are made with."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from diffkit import Schedule, Times, assemble, load_recipe
from diffkit.basics.times import Stratified
from diffkit.ddpm.schedule import Linear
from diffkit.testing.fixtures import TRIG
from diffkit.times import at_fraction, normal_quantile


@dataclass(frozen=True)
class Squared(Times):
    """t = u^2 of the schedule; stores the arguments of `update`."""

    told: list[Tensor] = field(default_factory=list)

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        return at_fraction(1.0 - (1.0 - uniform.double()) ** 2, schedule)

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor | None:
        return 2.0 * t.double().sqrt()

    def update(self, t: Tensor, each: Tensor) -> None:
        self.told.append(each)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_each_stratum_of_the_inner_law_has_one(count: int) -> None:
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(count))
    t = Stratified(Squared()).draw(uniform, TRIG)
    strata = (t.sqrt() * count).ceil()
    assert sorted(strata.int().tolist()) == list(range(1, count + 1))


def test_what_the_inner_law_corrects_and_learns_reaches_it() -> None:
    inner = Squared()
    times, t = Stratified(inner), torch.tensor([0.25, 1.0])
    correction = times.correction(t, TRIG)
    assert correction is not None
    assert correction.tolist() == [1.0, 2.0]
    times.update(t, torch.ones(2))
    assert len(inner.told) == 1
    assert Stratified().correction(t, Linear()) is None


def test_a_recipe_nests_them() -> None:
    nested = "objective={name: simple, times: {name: stratified, inner: {name: stratified, inner: uniform}}}"
    times = assemble(load_recipe("digits", [nested])).objective.times  # type: ignore[attr-defined]
    assert times == Stratified(Stratified())


def test_quantiles_are_finite_at_both_ends_and_symmetric() -> None:
    ends = torch.tensor([0.0, 1.0 - 2.0**-53, 1.0], dtype=torch.float64)
    low, near, high = normal_quantile(ends).tolist()
    assert low == -near == -high
    assert low == pytest.approx(-5.42, abs=0.01)
    assert normal_quantile(torch.tensor([0.5, 0.975])).tolist() == pytest.approx([0.0, 1.959964], abs=1e-6)
