"""Lossless coding: what is popped is what was pushed, at the rate of the bound of an exact model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffkit_compression.bits_back import BitsBack, Coded
from diffkit_compression.stack import FRACTIONS, Stack, UnderflowError
from torch import Tensor

from diffkit import build
from diffkit.likelihood import Chain, Discretised, fit_errors, variational_bound
from diffkit.testing import GaussianOracle

VARIANCE, SHAPE = 0.1, (1, 8, 8)
ORACLE = GaussianOracle(0.0, VARIANCE)


def draw(count: int, seed: int = 0) -> Tensor:
    """Normal data of 256 values."""
    x = math.sqrt(VARIANCE) * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return ((x + 1.0) * 127.5).round().clamp(0, 255).long()


def noise(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=SOURCE)


SOURCE = torch.Generator().manual_seed(1)


def fitted(layers: int) -> Chain:
    """The chain with the variance `optimal` of other examples."""
    chain = Chain(build("grid", "trailing").levels(build("schedule", "linear", steps=1000), layers))
    return chain.with_errors(fit_errors(ORACLE, chain, [(draw(128, 5) / 127.5 - 1.0, noise, {})]))


@pytest.mark.parametrize("std", [0.05, 0.5, 3.0, "each"])
def test_pops_are_the_inverse_of_pushes(std: float | str) -> None:
    rng = np.random.default_rng(0)
    mean = rng.normal(0.0, 40.0, 500)
    spread = rng.uniform(0.1, 3.0, 500) if std == "each" else std
    stack = Stack(2000)
    points = stack.pop_normal(mean, spread, escapes=False)
    assert stack.bits < 0
    stack.push_normal(points, mean, spread, escapes=False)
    assert stack.is_ground

    points[::7] += 100  # far outside the support
    stack.push_normal(points, mean, spread)
    assert np.array_equal(stack.pop_normal(mean, spread), points)
    assert stack.is_ground


def test_popped_points_have_the_mean_and_the_variance_of_the_normal_distribution() -> None:
    """The mass of bins would have the variance std^2 + 1/12."""
    mean = np.random.default_rng(0).uniform(-50, 50, 100_000)
    points = Stack(20_000).pop_normal(mean, 0.8, escapes=False)
    assert abs((points - mean).mean()) < 4 * 0.8 / math.sqrt(len(mean)) + 1 / FRACTIONS
    assert (points - mean).var() == pytest.approx(0.64, rel=0.02)


def test_an_empty_stack_is_an_error() -> None:
    with pytest.raises(UnderflowError, match="more bits were popped"):
        Stack(4).pop_normal(np.zeros(1000), 1.0)


def test_a_latent_that_no_archive_can_express_is_an_error() -> None:
    with pytest.raises(OverflowError, match="further from the mean"):
        Stack(4).push_normal(np.array([1 << 20]), np.zeros(1), 1.0)


@pytest.mark.parametrize(("count", "layers"), [(200, 20), pytest.param(10_000, 100, marks=pytest.mark.slow)])
def test_a_stream_has_the_rate_of_the_bound(count: int, layers: int) -> None:
    chain, values = fitted(layers), draw(count)
    coder = BitsBack(ORACLE, chain, 256, SHAPE)
    coded = coder.encode(values)
    assert torch.equal(coder.decode(coded), values)
    bound = variational_bound(ORACLE, chain, values / 127.5 - 1.0, noise, Discretised(256)).bits_per_dim.mean()
    rate = float(bound) * values.numel()
    assert coded.net < 1.005 * rate
    assert 32 * len(coded.words) < 1.01 * rate
    assert sum(coded.batches) == count
    assert len(coded.batches) < 12 + count / 256


def test_a_learned_variance_is_coded_element_by_element() -> None:
    class Learned:
        def __call__(self, x, level, /, **cond):  # type: ignore[no-untyped-def]
            estimate = ORACLE(x, level)
            estimate.aux["variance_fraction"] = torch.sigmoid(x)
            return estimate

    chain = Chain(fitted(10).levels, "learned")
    values, coder = draw(5), BitsBack(Learned(), chain, 256, SHAPE)
    assert torch.equal(coder.decode(coder.encode(values)), values)


def test_a_changed_stream_is_not_decoded_in_silence() -> None:
    values, coder = draw(4), BitsBack(ORACLE, fitted(10), 256, SHAPE)
    coded = coder.encode(values)
    words = coded.words.copy()
    words[len(words) // 2] ^= 1 << 7
    with pytest.raises((ValueError, OverflowError, UnderflowError)):
        assert torch.equal(coder.decode(Coded(words, coded.kept, coded.batches, 0)), values)
