"""Lossy coding: samples of the right distribution, at a rate near their KL, and prefixes that decode."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffkit_compression.relative import Candidates, NumberModel, Relative, Step, choose
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


def draw(count: int, seed: int = 0) -> Tensor:
    return math.sqrt(VARIANCE) * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_chosen_candidates_are_samples_of_the_target() -> None:
    """In four dimensions, 2000 times: mean and variance of q, not those of the model."""
    rng, shift, step = np.random.default_rng(0), np.array([[1.5, -1.0, 0.0, 0.5]]), Step(None, None, 1.0, 0.6, 1.0)  # type: ignore[arg-type]
    found = []
    for trial in range(40):
        candidates = Candidates((7, trial, 0), 4)
        chosen, _ = choose(candidates, shift.repeat(50, 0), step, rng)
        found.append(candidates.take(chosen))
    z = np.concatenate(found)
    assert z.mean(0) == pytest.approx(shift[0], abs=0.1)
    assert (z - shift).var(0) == pytest.approx([0.36] * 4, rel=0.12)


def test_rate_and_error_are_those_of_the_theory() -> None:
    count, chain = 300, exact(100)
    coder = Relative(ORACLE, chain, SHAPE)
    x0 = draw(count)
    sent = coder.send(x0, bits=100)
    spent, rate = 32 * len(sent.words) / count, sum(sent.kl)
    assert spent <= 100
    assert spent < 1.5 * rate
    level = chain.level(coder.plan[sent.moves - 1].end)
    information = 32 * math.log2(1.0 + VARIANCE / float(level.ratio) ** 2)
    assert rate == pytest.approx(information, rel=0.03)

    error = (coder.receive(sent.words, count, sent.moves) - x0).double().square().flatten(1).mean(1)
    within = 3.0 * float(error.std()) / math.sqrt(count)
    assert abs(float(error.mean()) - ORACLE.mmse(level)) < within + 0.03 * ORACLE.mmse(level)


def test_a_prefix_of_the_stream_decodes_to_coarser_pictures() -> None:
    coder, x0 = Relative(ORACLE, exact(20), SHAPE), draw(20)
    sent = coder.send(x0)
    errors = []
    for bits in (20, 60, 120, math.inf):
        prefix = sent.words if bits == math.inf else sent.words[: math.ceil(bits * 20 / 32) + 2]
        picture = coder.receive(prefix, 20, sent.moves, bits=bits)
        assert torch.equal(picture, coder.receive(sent.words, 20, sent.moves, bits=bits))
        errors.append(float((picture - x0).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_a_level_with_signal_at_the_noisy_end_is_sent_too() -> None:
    chain = Chain([*exact(20).levels[10:]]).with_errors(exact(20).errors[:10])  # type: ignore[index]
    coder = Relative(ORACLE, chain, SHAPE)
    assert (coder.plan[0].start, coder.plan[0].end) == (11, 10)
    sent = coder.send(draw(3))
    assert float((coder.receive(sent.words, 3, sent.moves) - draw(3)).square().mean()) < 0.01


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
