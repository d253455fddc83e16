"""Averages of weights against their closed forms (identities H), the converters, and reconstruction afterwards."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from diffkit.storage.checkpoint import CheckpointStore
from diffkit.train.config import EmaConfig
from diffkit.train.ema import (
    Profile,
    average,
    coefficients,
    decay_of,
    effective_weights,
    half_life_of,
    inner,
    power_of,
    profile,
    reconstruct,
    stored_profiles,
    width_of,
)


def path(n: int, size: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(size, dtype=torch.float64, generator=generator) for _ in range(n + 1)]


def weighed(weights: torch.Tensor, theta: list[torch.Tensor]) -> torch.Tensor:
    return (weights[:, None] * torch.stack(theta)).sum(0)


@given(decay=st.floats(0.01, 0.9999), n=st.integers(1, 60))
def test_h1_constant_decay(decay: float, n: int) -> None:
    """b^n theta_0 + (1 - b) sum b^(n - k) theta_k."""
    k = torch.arange(1, n + 1, dtype=torch.float64)
    weights = torch.cat([torch.tensor([decay**n], dtype=torch.float64), (1 - decay) * decay ** (n - k)])
    theta = path(n)
    torch.testing.assert_close(average(EmaConfig(decay=decay), theta), weighed(weights, theta), rtol=0, atol=1e-13)


@given(n=st.integers(1, 60))
def test_h1_warm_up_by_ratio(n: int) -> None:
    """While warm the initial weights count (n + 1)! 10! / (n + 10)!, whatever the decay."""
    left = math.factorial(n + 1) * math.factorial(10) / math.factorial(n + 10)
    weights = effective_weights(EmaConfig(decay=0.9999, warmup=True), n)
    assert float(weights[0]) == pytest.approx(left, rel=1e-12)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-13)
    theta = path(n)
    ours = average(EmaConfig(decay=0.9999, warmup=True), theta)
    torch.testing.assert_close(ours, weighed(weights, theta), rtol=0, atol=1e-13)


def test_h1_half_life_in_images() -> None:
    """After `half_life` images what was there counts half; the warm-up copies at the first update."""
    weights = effective_weights(EmaConfig(half_life=640.0), 10, batch_size=64)
    assert float(weights[0]) == pytest.approx(0.5, rel=1e-13)
    warm = profile(EmaConfig(half_life=1e6, warmup=True), 64)
    assert warm(1) == 0.0
    assert warm(101) == pytest.approx(0.5 ** (1 / (0.05 * 100)), rel=1e-12)
    assert warm(10**9) == pytest.approx(0.5 ** (64 / 1e6), rel=1e-12)


@given(power=st.floats(0.1, 60), n=st.integers(1, 80))
def test_h2_power_weights(power: float, n: int) -> None:
    """(k/n)^(g+1) - ((k-1)/n)^(g+1), the integrals of the profile over the cells; nothing of the start."""
    k = torch.arange(1, n + 1, dtype=torch.float64)
    cells = (k / n) ** (power + 1) - ((k - 1) / n) ** (power + 1)
    expected = torch.cat([torch.zeros(1, dtype=torch.float64), cells])
    theta = path(n)
    ours = average(EmaConfig(power=power), theta)
    torch.testing.assert_close(ours, weighed(expected, theta), rtol=0, atol=1e-12)


@given(power=st.floats(0.0, 1000))
def test_h2_width_and_power_are_inverse(power: float) -> None:
    assert power_of(width_of(power)) == pytest.approx(power, rel=1e-9, abs=1e-6)


def test_h2_known_widths() -> None:
    """The paper stores sigma_rel = 0.05 and 0.10, which are the exponents 16.97 and 6.94."""
    assert power_of(0.05) == pytest.approx(16.97, abs=5e-3)
    assert power_of(0.10) == pytest.approx(6.94, abs=5e-3)
    for width in (0.0, -1.0, 0.29, math.nan):
        with pytest.raises(ValueError, match="width"):
            power_of(width)


@given(decay=st.floats(0.01, 0.99999), batch=st.integers(1, 4096))
def test_decay_and_half_life_are_inverse(decay: float, batch: int) -> None:
    assert decay_of(half_life_of(decay, batch), batch) == pytest.approx(decay, rel=1e-12)


@given(a=st.tuples(st.floats(0.5, 10), st.floats(0.5, 20)), b=st.tuples(st.floats(0.5, 10), st.floats(0.5, 20)))
def test_h3_inner_products(a: tuple[float, float], b: tuple[float, float]) -> None:
    """The closed form is the integral of the product."""
    p, q = Profile(*a), Profile(*b)
    end = min(p.t, q.t)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    tau = (nodes + 1) / 2 * end
    product = np.prod([(s.power + 1) * tau**s.power / s.t ** (s.power + 1) for s in (p, q)], axis=0)
    assert inner(p, q) == pytest.approx(float((product * weights).sum() * end / 2), rel=1e-6)
    assert inner(p, q) == pytest.approx(inner(q, p), rel=1e-12)


def test_h3_a_target_in_the_span_is_met_exactly() -> None:
    snapshots = [Profile(t, power) for t in (50.0, 100.0, 150.0) for power in (16.97, 6.94)]
    for index, target in enumerate(snapshots):
        expected = np.eye(len(snapshots))[index]
        assert coefficients(snapshots, target) == pytest.approx(expected, abs=1e-8)


def test_h3_other_widths_come_out_right() -> None:
    """From two stored averages every 8 updates, an average of a third width; compared with the real one."""
    n, size = 128, 3
    theta = [torch.sin(torch.arange(size, dtype=torch.float64) + 0.05 * k) for k in range(n + 1)]
    stored = [
        (Profile(t, power), {"w": average(EmaConfig(power=power), theta[: t + 1]), "count": torch.tensor(t)})
        for t in range(8, n + 1, 8)
        for power in (16.97, 6.94)
    ]
    for target in (10.0, 6.0, 25.0):
        found = reconstruct(stored, Profile(n, target))
        real = average(EmaConfig(power=target), theta)
        assert float((found["w"] - real).norm() / real.norm()) < 2e-3
        assert int(found["count"]) == n


def test_reconstruction_refuses_what_it_cannot_know() -> None:
    with pytest.raises(ValueError, match="no snapshots"):
        coefficients([], Profile(1.0, 2.0))
    with pytest.raises(ValueError, match="no average was stored"):
        coefficients([Profile(10.0, 2.0)], Profile(11.0, 2.0))


def test_profiles_are_found_in_checkpoints(toys: ModuleType, tmp_path: Path) -> None:
    """From the checkpoints of a run: the average of a third exponent, beside the real one of the same run."""
    averages = (
        EmaConfig(decay=0.9),
        EmaConfig(name="wide", power=6.94),
        EmaConfig(name="narrow", power=16.97),
        EmaConfig(name="real", power=10.0),
    )
    made = toys.trainer(toys.plain(), steps=60, checkpoint_every=4, ema=averages)
    store = CheckpointStore(tmp_path, keep=100)
    made.run((toys.Recorder(save=lambda step: toys.save(store, made)),))
    next(tmp_path.glob("step-00000008/ema-wide.safetensors")).write_bytes(b"")
    found = stored_profiles(tmp_path)
    assert {p.t for p, _ in found} == set(range(4, 61, 4)) - {8}
    others = [(p, weights) for p, weights in found if p.power != 10.0]
    assert len(others) == 2 * 14
    weights = reconstruct(others, Profile(60, 10.0))
    real = made.tensors()["ema-real"]
    for name in ("first.weight", "second.weight"):
        nearest = min(float((w[name] - real[name]).norm()) for _, w in others)
        assert float((weights[name] - real[name]).norm()) < 0.01 * nearest


def test_averages_in_training_are_the_definition(toys: ModuleType) -> None:
    """pains 22: each average has its declared form, its own network, and the buffers of the trained one."""
    made = toys.trainer(toys.task())
    source = made.engine.batch_source(0)
    history = [made.engine.network.first.weight.detach().clone()]
    for step in range(7):
        made.engine.advance(step, source)
        history.append(made.engine.network.first.weight.detach().clone())
    for averaged in made.engine.averages:
        expected = average(averaged.ema, history, batch_size=10)
        torch.testing.assert_close(averaged.network.first.weight, expected, rtol=1e-5, atol=1e-7)
        assert int(averaged.network.seen) == 70
        assert torch.equal(averaged.network.mean, made.engine.network.mean)
        assert torch.equal(averaged.network.frozen, made.engine.network.frozen)
        assert not averaged.network.training
    assert {averaged.group for averaged in made.engine.averages} == {"ema-ema", "ema-power", "ema-images"}


def test_without_averages_the_raw_weights_are_shown(toys: ModuleType) -> None:
    made, outcome = toys.trained(toys.task(), ema=())
    assert made.engine.average_model is None
    assert made.tensors().keys() == {"network", "optimizer", "components"}
    assert outcome.held_out is not None
