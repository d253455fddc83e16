"""The order of examples, and the feeds that follow it."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, strategies as st

from diffkit.data import Cond, Split
from diffkit.errors import DataError, ResourceError
from diffkit.train.data_loading import (
    DirectBatches,
    InMemoryBatches,
    ShuffledOrder,
    WorkerBatches,
    batch_source,
    divide,
)

CPU = torch.device("cpu")


@given(count=st.integers(1, 40), batch=st.integers(2, 50), seed=st.integers(0, 5), data=st.data())
def test_every_epoch_holds_every_example_once(count: int, batch: int, seed: int, data: st.DataObject) -> None:
    """Batches that end an epoch go on with the next; any cut of the rows gives the same examples."""
    order = ShuffledOrder(count, batch, seed)
    steps = 3 * count // batch + 1
    seen = torch.cat([order.rows(step, 0, batch) for step in range(steps)]).tolist()
    for epoch in range(len(seen) // count):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    step = data.draw(st.integers(0, steps - 1))
    cut = data.draw(st.integers(1, batch - 1))
    again = ShuffledOrder(count, batch, seed)
    parts = torch.cat([again.rows(step, 0, cut), again.rows(step, cut, batch)])
    assert parts.tolist() == seen[step * batch : (step + 1) * batch]


def test_epochs_and_seeds_differ() -> None:
    order = ShuffledOrder(100, 100, 0)
    rows = [order.rows(step, 0, 100).tolist() for step in range(3)]
    assert rows[0] != rows[1] != rows[2]
    assert ShuffledOrder(100, 100, 1).rows(0, 0, 100).tolist() != rows[0]


def test_no_examples_is_an_error() -> None:
    with pytest.raises(DataError, match="no examples"):
        ShuffledOrder(0, 4, 0)


@given(start=st.integers(0, 9), length=st.integers(1, 40), parts=st.integers(1, 50))
def test_parts_cover_the_rows(start: int, length: int, parts: int) -> None:
    ranges = divide(start, start + length, parts)
    assert [i for r in ranges for i in r] == list(range(start, start + length))
    sizes = Counter(map(len, ranges))
    assert max(sizes) - min(sizes) <= 1
    assert len(ranges) == min(parts, length)


@pytest.mark.parametrize("first", [0, 3])
def test_all_feeds_give_the_same(toys: ModuleType, first: int) -> None:
    """Resident, direct and streamed by workers, from any step on."""
    order = ShuffledOrder(23, 10, 7)
    whole, single = toys.Whole().split("train"), toys.OneByOne().split("train")
    own = range(2, 8)
    feeds = [
        batch_source(whole, order, own, range(first, 6), CPU, 2),
        batch_source(single, order, own, range(first, 6), CPU, 0),
        batch_source(single, order, own, range(first, 6), CPU, 2),
    ]
    assert [type(f) for f in feeds] == [InMemoryBatches, DirectBatches, WorkerBatches]
    for step in range(first, 6):
        for rows in (range(2, 5), range(5, 8)):
            (x, cond), *others = [f.rows(step, rows) for f in feeds]
            assert x.shape == (3, 4)
            for other, named in others:
                assert torch.equal(x, other)
                assert torch.equal(cond["label"], named["label"])
    for f in feeds:
        f.close()


@pytest.mark.parametrize("prefetch", [1, 3])
def test_each_worker_reads_batches_ahead(tmp_path: Path, prefetch: int) -> None:
    """With one batch taken, two workers have read `prefetch` each, and one replaces the batch that was taken."""
    source = batch_source(Noted(tmp_path), ShuffledOrder(100, 10, 0), range(10), range(10), CPU, 2, prefetch)
    source.rows(0, range(10))
    wanted, deadline = 10 * (2 * prefetch + 1), time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) == wanted
    source.close()


class Noted(Split):
    """Leaves a file for each example that is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Cond]:
        (self.folder / str(index)).touch()
        return torch.zeros(2), {}


class Broken(Split):
    """Raises, or dies, at example 5."""

    def __init__(self, die: bool) -> None:
        self.die = die

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Cond]:
        if index == 5:
            if self.die:
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("picture 5 is torn", code="DK303", fix="remove it")
        return torch.zeros(2), {}


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_data_arrive_as_they_were_raised(workers: int) -> None:
    source = batch_source(Broken(die=False), ShuffledOrder(10, 10, 0), range(10), range(3), CPU, workers)
    with pytest.raises(DataError) as caught:
        source.rows(0, range(10))
    assert (caught.value.code, caught.value.fix, caught.value.message) == ("DK303", "remove it", "picture 5 is torn")
    source.close()


def test_a_killed_worker_is_named() -> None:
    """reliability 13: the kernel ended a worker for its memory."""
    source = batch_source(Broken(die=True), ShuffledOrder(10, 10, 0), range(10), range(3), CPU, 1)
    with pytest.raises(ResourceError, match="killed"):
        source.rows(0, range(10))
    source.close()


def test_workers_outlive_a_signal_to_the_group(toys: ModuleType) -> None:
    """reliability 4: a scheduler signals every process; the step at hand can still end."""
    source = batch_source(toys.OneByOne().split("train"), ShuffledOrder(23, 10, 0), range(10), range(50), CPU, 2)
    assert isinstance(source, WorkerBatches)
    source.rows(0, range(10))
    workers = source._batches._workers  # type: ignore[union-attr]
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    for step in range(1, 50):
        source.rows(step, range(10))
    source.close()


def test_workers_do_not_draw_from_the_global_generator(toys: ModuleType) -> None:
    before = torch.get_rng_state()
    source = batch_source(toys.OneByOne().split("train"), ShuffledOrder(23, 10, 0), range(10), range(2), CPU, 1)
    source.rows(0, range(10))
    source.close()
    assert torch.equal(torch.get_rng_state(), before)
