"""Random numbers depend on the seed and on names only, never on ranks, micro-batches or order."""

from __future__ import annotations

import itertools
import weakref

import pytest
import torch

from diffkit import ArgumentError, RandomStreams, SampleNoise, UsageError
from diffkit.noise import BLOCK_ROWS, generator, key

TOTAL = 3 * BLOCK_ROWS + 5


@pytest.mark.parametrize("cuts", [[0, TOTAL], [0, 8, 60, 70, 130, TOTAL], [0, 64, 128, TOTAL], [0, 65, 129, TOTAL]])
def test_rows_do_not_depend_on_the_cut(cuts: list[int]) -> None:
    whole = RandomStreams(7, 3, TOTAL).normal("noise", torch.zeros(TOTAL, 2))
    numbers = RandomStreams(7, 3, TOTAL).uniform("dropout", torch.zeros(TOTAL, 2), 3)
    for start, end in itertools.pairwise(cuts):
        rows = RandomStreams(7, 3, TOTAL).rows(start)
        like = torch.zeros(end - start, 2)
        assert torch.equal(rows.normal("noise", like), whole[start:end])
        assert torch.equal(rows.uniform("dropout", like, 3), numbers[start:end])


def test_a_rank_draws_its_blocks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []
    draw = torch.randn
    monkeypatch.setattr(torch, "randn", lambda shape, **options: drawn.append(tuple(shape)) or draw(shape, **options))
    RandomStreams(0, 0, 4096).rows(2048).normal("noise", torch.zeros(8, 3))
    assert drawn == [(BLOCK_ROWS, 3)]


def test_a_rank_holds_two_blocks_beside_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[weakref.ref[torch.Tensor]] = []
    held, draw = [], torch.randn

    def drawn(shape: tuple[int, ...], **options: object) -> torch.Tensor:
        found: torch.Tensor = draw(shape, **options)  # type: ignore[call-overload]
        blocks.append(weakref.ref(found))
        held.append(sum(block() is not None for block in blocks))
        return found

    monkeypatch.setattr(torch, "randn", drawn)
    RandomStreams(0, 0, 4096).rows(30).normal("noise", torch.zeros(1000, 3))
    assert len(held) == 17
    assert max(held) <= 2


def test_rows_steps_streams_and_seeds_differ() -> None:
    def numbers(seed: int = 0, step: int = 0, stream: str = "noise", start: int = 0) -> torch.Tensor:
        return RandomStreams(seed, step, 256, start).normal(stream, torch.zeros(64, 4))

    variants = [numbers(), numbers(seed=1), numbers(step=1), numbers(stream="other"), numbers(start=64)]
    for i, one in enumerate(variants):
        assert abs(float(one.mean())) < 0.3
        for other in variants[:i]:
            assert abs(float((one * other).mean())) < 0.3


def test_drawing_a_stream_twice_is_an_error() -> None:
    noise, x = RandomStreams(0, 5, 8), torch.zeros(4, 2)
    first = noise.normal("noise", x)
    with pytest.raises(UsageError, match="'noise' was drawn twice in step 5"):
        noise.normal("noise", x)
    with pytest.raises(UsageError, match="drawn twice"):
        noise.uniform("noise", x)
    noise.batch_uniform("times", x)
    with pytest.raises(UsageError, match="drawn twice"):
        noise.batch_uniform("times", x)
    assert torch.equal(noise.rows(0).normal("noise", x), first)


def test_rows_outside_the_batch_are_an_error() -> None:
    with pytest.raises(UsageError, match="rows 6 to 9 are outside the batch of 8"):
        RandomStreams(0, 0, 8, 6).normal("noise", torch.zeros(4, 2))


def test_keys_of_different_parts_differ() -> None:
    parts: list[tuple[str | int, ...]] = [
        (1,),
        ("1",),
        ("a/str:b",),
        ("a", "b"),
        ("a\\", "b"),
        ("a\\/str:b",),
        ("b", "a"),
    ]
    assert len({key(*one) for one in parts}) == len(parts)
    training = RandomStreams(0, 0, 1).normal("start", torch.zeros(1, 3))
    assert not torch.equal(training, SampleNoise(0, [0]).initial((3,)))
    assert not torch.equal(training, torch.randn(1, 3, generator=generator("cpu", 0, "start", 0)))


def test_the_noise_of_a_step_does_not_depend_on_the_steps_before() -> None:
    """Steps are drawn ahead in chunks of 64: earlier, later and skipped ones give the numbers of a new source."""
    like, source = torch.zeros(2, 3), SampleNoise(5, [0, 3])
    fresh = {step: SampleNoise(5, [0, 3]).at_step(step)(like) for step in (0, 63, 64, 70, 199, 200, 330)}
    for step in (0, 200, 199, 70, 63, 64, 0, 330, 64):
        assert torch.equal(source.at_step(step)(like), fresh[step])
    assert len({float(numbers[0, 0]) for numbers in fresh.values()}) == len(fresh)


def test_samples_must_be_indices() -> None:
    with pytest.raises(
        ArgumentError, match=r"argument 2 \(`samples`\) must be indices of samples, got int; fix: pass range"
    ):
        SampleNoise(0, 8)  # type: ignore[arg-type]
