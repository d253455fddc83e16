"""Network `oracle`: recipes that sample without training."""

from __future__ import annotations

import pytest
import torch

from diffkit import Level, Model
from diffkit.basics.data.digits import Digits
from diffkit.basics.data.gaussian import Gaussian
from diffkit.basics.data.mixture import Mixture
from diffkit.parameterization import Parameterization
from diffkit.schedule import Schedule
from diffkit.testing import OracleNetwork, fixtures

DATA = Gaussian(mean=(0.3, -0.2), std=(0.5, 0.8))


@pytest.mark.parametrize(
    "p", [*fixtures.ROWS, fixtures.Ranged(fixtures.EPS)], ids=lambda p: getattr(p, "title", "range")
)
@pytest.mark.parametrize("schedule", [fixtures.discrete(), fixtures.TRIG, fixtures.EXPLODING], ids=["T", "trig", "edm"])
def test_it_is_the_exact_denoiser(p: Parameterization, schedule: Schedule) -> None:
    model = Model(OracleNetwork(DATA, schedule, p), p, schedule)
    truth = DATA.truth()
    x = torch.randn(4, 2, dtype=torch.float64)
    span = schedule.t_noise - schedule.t_clean
    for u in (0.1, 0.5, 0.9):
        t = schedule.t_clean + u * span
        level = schedule.level(float(round(t)) if schedule.steps else t)
        tolerance = 1e-9 if schedule.steps else 2e-5
        torch.testing.assert_close(model(x, level).x0, truth(x, level).x0, rtol=tolerance, atol=tolerance)


def test_labels_reach_the_truth() -> None:
    data = Mixture(labels=True)
    schedule = fixtures.discrete()
    model = Model(OracleNetwork(data, schedule, fixtures.EPS), fixtures.EPS, schedule)
    x, label, level = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 8]), schedule.level(500.0)
    torch.testing.assert_close(model(x, level, label=label).x0, data.truth()(x, level, label=label).x0)


def test_float32_and_levels_between_steps() -> None:
    schedule = fixtures.discrete()
    model = Model(OracleNetwork(DATA, schedule, fixtures.X0), fixtures.X0, schedule)
    level = schedule.level(123.4)
    x = torch.randn(4, 2)
    answer = model(x, Level(float(level.alpha) * 2, float(level.sigma) * 2))
    assert answer.x0.dtype == torch.float32
    want = DATA.truth()(x, Level(float(level.alpha) * 2, float(level.sigma) * 2))
    torch.testing.assert_close(answer.x0, want.x0, rtol=1e-4, atol=1e-4)


def test_data_without_a_closed_form_is_refused() -> None:
    with pytest.raises(ValueError, match="closed form"):
        OracleNetwork(Digits(), fixtures.discrete(), fixtures.EPS)
