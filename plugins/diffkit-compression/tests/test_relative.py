"""Lossy coding: samples of the right distribution, at a rate near their KL, and prefixes that decode."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffkit_compression.candidates import BLOCK, Candidates
from diffkit_compression.relative import NumberModel, Relative, Step, choose
from torch import Tensor

from diffkit import build
from diffkit.likelihood import Chain
from diffkit.testing import GaussianOracle

VARIANCE, SHAPE = 0.1, (1, 8, 8)
ORACLE = GaussianOracle(0.0, VARIANCE)


def exact(layers: int) -> Chain:
    """The chain with the exact errors of the oracle."""
    chain = Chain(build("grid", "trailing").levels(build("schedule", "linear", steps=1000), layers))
    every = [chain.level(i) for i in range(1, layers + 1)]
    return chain.with_errors([ORACLE.mmse(level) for level in every])


def draw(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return math.sqrt(VARIANCE) * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_chosen_candidates_are_samples_of_the_target() -> None:
    """In four dimensions, 1500 times: mean and variance of q, not those of the model."""
    rng, none, shift = np.random.default_rng(0), np.zeros(0), np.array([[1.5, -1.0, 0.0, 0.5]])
    step, found = Step(none, none, 1.0, 0.6, 1.0), []
    for trial in range(1500):
        candidates = Candidates((7, trial, 0), 1, 4)
        chosen, _ = choose(candidates, shift, step, rng)
        found.append(candidates.take(chosen))
    z = np.concatenate(found)
    assert z.mean(0) == pytest.approx(shift[0], abs=0.06)
    assert (z - shift).var(0) == pytest.approx([0.36] * 4, rel=0.15)


def test_each_example_has_its_own_directions() -> None:
    """What the sender weighs is the candidate that both sides draw, in each arrangement of the same numbers."""
    candidates, directions = Candidates((1, 2, 3), 5, 8), np.random.default_rng(0).normal(size=(5, 8))
    assert candidates.arrangements == 4
    for start, blocks in ((0, 4), (5, 2)):
        weighed = candidates.weigh(candidates.turn(directions), 0.25, np.arange(5), start, blocks)
        for n in (0, 700, (blocks - 1) * BLOCK + 3):
            own = candidates.take(np.full(5, start * BLOCK + n))
            assert len({tuple(row) for row in own.round(4)}) == 5
            expected = (directions * own).sum(1) - 0.25 * (own**2).sum(1)
            assert weighed[:, n] == pytest.approx(expected, abs=1e-5)


def test_arrangements_of_the_same_numbers_point_in_other_directions() -> None:
    """Products of 64 arrangements with a direction are standard normal; their correlations are those of random ones."""
    direction = np.random.default_rng(0).normal(size=(1, 256))
    direction /= np.linalg.norm(direction)
    candidates = Candidates((4, 0, 0), 1, 256)
    found = candidates.weigh(candidates.turn(direction), 0.0, np.arange(1), 0, 64).reshape(64, BLOCK).astype(float)
    assert found.std() == pytest.approx(1.0, abs=0.02)
    assert (found**4).mean() == pytest.approx(3.0, abs=0.15)
    correlation = np.corrcoef(found) - np.eye(64)
    assert correlation.std() == pytest.approx(math.sqrt(1 / BLOCK + 1 / 256), rel=0.1)
    assert correlation.mean() == pytest.approx(0.0, abs=0.01)


def test_each_dimension_is_in_one_part() -> None:
    coder = Relative(ORACLE, exact(20), SHAPE, bits_per_number=5.0)
    for place, move in enumerate(coder.plan):
        parts = coder._parts(place, move)
        assert len(parts) == move.parts
        assert sorted(np.concatenate(parts)) == list(range(64))


def test_errors_of_a_batch_are_independent() -> None:
    """The mean of 64 errors has 1/64 of the variance of one; if examples share directions, eight times as much."""
    rng, none = np.random.default_rng(0), np.zeros(0)
    shift, step = np.repeat([[1.5, -1.0, 0.0, 0.5]], 64, 0), Step(none, none, 1.0, 0.6, 1.0)
    means = []
    for trial in range(60):
        candidates = Candidates((8, trial, 0), 64, 4)
        chosen, _ = choose(candidates, shift, step, rng)
        means.append((candidates.take(chosen) - shift).mean(0))
    assert 64 * np.square(means).mean() == pytest.approx(0.36, rel=0.4)


def test_rate_and_error_are_those_of_the_theory() -> None:
    check_rates(count=100, chain=exact(400), bits=50, bits_per_number=6.0, shape=(1, 4, 4))


@pytest.mark.slow
@pytest.mark.parametrize(("bits_per_number", "rates"), [(6.0, 10), (8.0, 7)])
def test_ten_rates_on_a_thousand_examples(bits_per_number: float, rates: int) -> None:
    moves = check_rates(count=1000, chain=exact(400), bits=280, bits_per_number=bits_per_number)
    assert moves >= rates


def check_rates(count: int, chain: Chain, bits: float, bits_per_number: float, shape: tuple[int, ...] = SHAPE) -> int:
    """After each move: mean squared error and sum of KL are those of the Gaussian, the overhead is below half."""
    coder = Relative(ORACLE, chain, shape, bits_per_number=bits_per_number)
    x0 = draw(count, shape=shape)
    sent = coder.send(x0, bits=bits)
    assert 32 * len(sent.words) <= bits * count
    assert 32 * len(sent.words) < 1.5 * sum(sent.kl) * count + 64
    for moves in range(1, sent.moves + 1):
        level = chain.level(coder.plan[moves - 1].end)
        information = 0.5 * math.prod(shape) * math.log2(1.0 + VARIANCE / float(level.ratio) ** 2)
        assert sum(sent.kl[:moves]) == pytest.approx(information, rel=0.03 if count >= 1000 else 0.1)
        error = (coder.receive(sent.words, count, moves) - x0).double().square().flatten(1).mean(1)
        within = 3.0 * float(error.std()) / math.sqrt(count)
        expected = ORACLE.mmse(level)
        assert abs(float(error.mean()) - expected) < within
        assert count < 1000 or float(error.mean()) == pytest.approx(expected, rel=0.03)
    return sent.moves


def test_a_prefix_of_the_stream_decodes_to_coarser_pictures() -> None:
    chain, x0 = exact(20), draw(12)
    coder = Relative(ORACLE, chain, SHAPE, bits_per_number=5.0)
    steps: list[tuple[int, int]] = []
    sent = coder.send(x0, bits=120, on_progress=lambda done, count: steps.append((done, count)))
    assert steps == [(done, len(coder.plan)) for done in range(1, sent.moves + 1)]
    errors = []
    for bits in (15, 50, 120):
        prefix = sent.words[: math.ceil(bits * len(x0) / 32) + 2]
        picture = coder.receive(prefix, len(x0), sent.moves, bits=bits)
        assert torch.equal(picture, coder.receive(sent.words, len(x0), sent.moves, bits=bits))
        errors.append(float((picture - x0).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[0]


def test_a_level_with_signal_at_the_noisy_end_is_sent_too() -> None:
    full = exact(20)
    assert full.errors is not None
    chain = Chain(full.levels[12:]).with_errors(full.errors[:8])
    coder = Relative(ORACLE, chain, SHAPE, bits_per_number=5.0)
    assert (coder.plan[0].start, coder.plan[0].end) == (9, 8)
    sent = coder.send(draw(20), bits=60)
    error = float((coder.receive(sent.words, 20, sent.moves) - draw(20)).square().mean())
    assert error == pytest.approx(ORACLE.mmse(chain.level(coder.plan[sent.moves - 1].end)), rel=0.15)


def test_numbers_are_coded_without_loss() -> None:
    from constriction import stream

    rng = np.random.default_rng(0)
    numbers = [np.int64(2.0 ** rng.uniform(0, 16, 30)) - 1 for _ in range(4)]
    encoder, model = stream.queue.RangeEncoder(), NumberModel()
    for part in numbers:
        model.encode(encoder, part, 8.0)
    spent = model.spent
    decoder, model = stream.queue.RangeDecoder(encoder.get_compressed()), NumberModel()
    assert all(np.array_equal(model.decode(decoder, 30, 8.0), part) for part in numbers)
    assert model.spent == spent
    assert 0 <= encoder.num_bits() - spent < 65
