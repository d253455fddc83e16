"""Latents on disk: two runs at once, an encoding that was stopped or killed, and data that changed."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from diffkit import DataSpec, InMemorySplit, build
from diffkit.basics.codec import Affine
from diffkit.codec import Posterior
from diffkit.data import Data, Part
from diffkit.errors import StoppedError
from diffkit.runtime.progress import Progress
from diffkit.train import latents
from diffkit.train.latents import LatentCache, content_hash

CPU = torch.device("cpu")


class Numbers(Data):
    """Points 0, 1, 2, ... with a condition; its fingerprint counts them only."""

    def __init__(self, count: int = 300, shift: float = 0.0, added: float = 0.0) -> None:
        self.count, self.shift, self.added = count, shift, added

    @property
    def spec(self) -> DataSpec:
        return DataSpec(1)

    def split(self, part: Part) -> InMemorySplit:
        rows = torch.arange(self.count if part == "train" else 70).float()[:, None]
        return InMemorySplit(rows + self.shift, {"label": rows[:, 0] + self.added})


class Counting(Affine):
    """Counts the examples that it encodes."""

    encoded = 0

    def posterior(self, x: torch.Tensor) -> Posterior:
        Counting.encoded += len(x)
        return super().posterior(x)


def cache_in(folder: Path) -> LatentCache:
    return LatentCache(folder / "latents" / "key", {"codec": "affine"})


def write(cache: LatentCache, codec: Affine, stop_after: int | None = None) -> None:
    calls = iter(range(1000))
    cache.write(Numbers(), codec, (), CPU, Progress(), lambda: next(calls) == stop_after)


@pytest.mark.parametrize("damaged", [False, True])
def test_two_runs_that_encode_the_same_latents_share_those_of_the_first(tmp_path: Path, damaged: bool) -> None:
    """The second run ends while the first one encodes: the first keeps that folder, whose files the second reads."""
    data = build("data", "mixture", layout="ring", count=8, held_out=2)
    cache = LatentCache(tmp_path / "latents" / "key", {"codec": "affine"})
    if damaged:
        cache.folder.mkdir(parents=True)
        (cache.folder / "latents.json").write_text("{}")
    read: list[torch.Tensor] = []

    class Slow(Affine):
        def posterior(self, x: torch.Tensor) -> Posterior:
            if not read:
                read.append(torch.zeros(0))
                cache.write(data, Affine(scale=2.0), (), CPU, Progress())
                read[0] = cache.split("train")[0][0]
            return super().posterior(x)

    cache.write(data, Slow(scale=2.0), (), CPU, Progress())
    files = {path: path.stat().st_ino for path in cache.folder.iterdir()}
    assert cache.fault() is None
    assert torch.equal(cache.split("train")[0][0], read[0])
    cache.write(data, Affine(scale=2.0), (), CPU, Progress())
    assert {path: path.stat().st_ino for path in cache.folder.iterdir()} == files
    assert [path.name for path in cache.folder.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("after", [0, 2, 5])
def test_an_encoding_that_was_stopped_is_continued(tmp_path: Path, after: int) -> None:
    """Batches of 64: 300 training examples are 5, 70 held-out ones 2."""
    cache, whole = cache_in(tmp_path), cache_in(tmp_path / "whole")
    write(whole, Affine(scale=2.0))
    kept = {0: 0, 2: 128, 5: 300}[after]
    with pytest.raises(StoppedError, match=f"; {kept} of 370 examples are kept"):
        write(cache, Affine(scale=2.0), after)
    assert cache.fault() is not None
    Counting.encoded = 0
    write(cache, Counting(scale=2.0))
    assert Counting.encoded == 370 - kept
    for part in ("train", "held-out"):
        assert torch.equal(cache.split(part).x, whole.split(part).x)
        assert torch.equal(cache.split(part).cond["label"], whole.split(part).cond["label"])
    assert [path.name for path in cache.folder.parent.iterdir()] == ["key"]


def encode_and_die(folder: Path) -> None:
    latents.KEPT_EVERY = 128

    class Dying(Counting):
        def posterior(self, x: torch.Tensor) -> Posterior:
            if Counting.encoded == 200:
                os._exit(9)
            return super().posterior(x)

    Counting.encoded = 0
    write(cache_in(folder), Dying(scale=2.0))


def test_an_encoding_that_was_killed_is_continued_from_the_rows_on_disk(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=encode_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    cache = cache_in(tmp_path)
    (draft,) = cache.folder.parent.iterdir()
    Counting.encoded = 0
    write(cache, Counting(scale=2.0))
    assert Counting.encoded == 370 - 128
    assert torch.equal(cache.split("train").x.flatten(), 2.0 * torch.arange(300))
    assert not draft.exists()


@pytest.mark.parametrize("damage", ["rows", "array"])
def test_a_damaged_draft_is_encoded_again(tmp_path: Path, damage: str) -> None:
    cache = cache_in(tmp_path)
    with pytest.raises(StoppedError):
        write(cache, Affine(scale=2.0), 2)
    (draft,) = cache.folder.parent.iterdir()
    if damage == "rows":
        (draft / "rows.json").write_text("{")
    else:
        np.save(draft / "train.x.npy", np.zeros((3, 1)))
    write(cache, Affine(scale=2.0))
    assert torch.equal(cache.split("train").x.flatten(), 2.0 * torch.arange(300))


def test_a_failed_encoding_leaves_nothing(tmp_path: Path) -> None:
    class Failing(Affine):
        def posterior(self, x: torch.Tensor) -> Posterior:
            raise ValueError("no codes")

    cache = cache_in(tmp_path)
    with pytest.raises(ValueError, match="no codes"):
        write(cache, Failing())
    assert not list(cache.folder.parent.iterdir())


def test_the_hash_of_the_content_depends_on_every_example_and_condition() -> None:
    changed = [Numbers(), Numbers(shift=1.0), Numbers(added=1.0), Numbers(count=299)]
    assert len({content_hash(data, Progress()) for data in changed}) == len(changed)
    assert content_hash(Numbers(), Progress()) == content_hash(Numbers(), Progress())
