"""Data loading: raw batches by step and row, gathered on the device or streamed by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from multiprocessing import active_children
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data import InMemorySplit, Split, stack
from ..errors import DataError, DiffkitError
from ..noise import generator
from ..runtime.memory import worker_killed
from ..runtime.signals import block_stop_signals, ignore_stop_signals
from ..storage.lock import close_inherited_locks

Batch = tuple[Tensor, dict[str, Tensor]]


class BatchSource(Protocol):
    """A source of raw examples."""

    def rows(self, step: int, rows: range) -> Batch:
        """Return raw x: (B, C, *S) and cond of these rows of the global batch of a step, on the device.

        Later calls have the same step or a later one.
        """

    def close(self) -> None:
        """Stop worker processes."""


def batch_source(
    split: Split, order: ShuffledOrder, own: range, steps: range, device: torch.device, workers: int, prefetch: int = 2
) -> BatchSource:
    """Open a split: held on the device, read in this process, or streamed by worker processes.

    Args:
        split: the examples.
        order: the order of the examples.
        own: rows of the global batch that this process trains on.
        steps: the steps that are read.
        device: the device of the batches.
        workers: number of worker processes; 0 reads in this process. A split in memory needs none.
        prefetch: batches that each worker reads ahead.

    Returns:
        The source; close it after the last step.
    """
    if isinstance(split, InMemorySplit):
        return InMemoryBatches(split.to(device), ShuffledOrder(order.count, order.batch_size, order.seed, device))
    if workers == 0:
        return DirectBatches(split, order, device)
    return WorkerBatches(split, order, own, steps, device, workers, prefetch)


class InMemoryBatches:
    """A split that is held on the device as raw values: rows are gathered there, nothing is copied from the host."""

    def __init__(self, split: InMemorySplit, order: ShuffledOrder) -> None:
        self.split, self.order = split, order

    def rows(self, step: int, rows: range) -> Batch:
        return self.split.rows(self.order.rows(step, rows.start, rows.stop))

    def close(self) -> None:
        """Do nothing: there are no workers."""


class DirectBatches:
    """A split that is read example by example in this process."""

    def __init__(self, split: Split, order: ShuffledOrder, device: torch.device) -> None:
        self.split, self.order, self.device = split, order, device

    def rows(self, step: int, rows: range) -> Batch:
        return _move(stack(self.split, self.order.rows(step, rows.start, rows.stop).tolist()), self.device)

    def close(self) -> None:
        """Do nothing: there are no workers."""


class WorkerBatches:
    """A split that worker processes read ahead, a batch of this process at a time, in order.

    Raises:
        DiffkitError: the error that the split raised in a worker.
        ResourceError: a worker was killed.
    """

    def __init__(
        self,
        split: Split,
        order: ShuffledOrder,
        own: range,
        steps: range,
        device: torch.device,
        workers: int,
        prefetch: int,
    ) -> None:
        self.own, self.device = own, device
        self._step = steps.start - 1
        self._batch: Batch | None = None
        loader = DataLoader(
            _Examples(split),
            batch_sampler=_Batches(order, own, steps),
            num_workers=workers,
            prefetch_factor=prefetch,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # else the loader would draw from the global one
        )
        others = set(active_children())
        with block_stop_signals():  # a signal would end a worker that has not run `_start_worker` yet
            self._batches: Iterator[Batch | DiffkitError] | None = iter(loader)
        self._workers = [worker for worker in active_children() if worker not in others]

    def rows(self, step: int, rows: range) -> Batch:
        while self._step < step:
            self._batch = self._next()
            self._step += 1
        assert self._batch is not None
        x, cond = self._batch
        at = slice(rows.start - self.own.start, rows.stop - self.own.start)
        return x[at], {name: value[at] for name, value in cond.items()}

    def close(self) -> None:
        self._batches = None
        # One that was killed may have held a lock that the others wait for; they ignore milder signals.
        if any(worker.exitcode for worker in self._workers):
            for worker in self._workers:
                worker.kill()
                worker.join()  # torch raises an error about its end here, not later in another call

    def _next(self) -> Batch:
        assert self._batches is not None
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            if killed := worker_killed(error):
                self.close()
                raise killed from error
            raise
        if isinstance(batch, DiffkitError):
            raise batch
        return _move(batch, self.device)


def _start_worker(worker: int) -> None:
    """Prepare a worker process: ignore signals to the process group and close inherited lock files."""
    ignore_stop_signals()
    close_inherited_locks()


class _Examples(Dataset[tuple[Tensor, dict[str, Tensor]] | DiffkitError]):
    """The split as a torch data set; an error is returned as a value, so that it arrives as it was raised."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]] | DiffkitError:
        try:
            x, cond = self.split[index]
        except DiffkitError as error:
            return error
        return x, dict(cond)


class _Batches(Sampler[list[int]]):
    """The indices of the rows of this process, step after step."""

    def __init__(self, order: ShuffledOrder, own: range, steps: range) -> None:
        self.order, self.own, self.steps = order, own, steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield self.order.rows(step, self.own.start, self.own.stop).tolist()

    def __len__(self) -> int:
        return len(self.steps)


def _collate(rows: list[tuple[Tensor, dict[str, Tensor]] | DiffkitError]) -> Batch | DiffkitError:
    good = []
    for row in rows:
        if isinstance(row, DiffkitError):
            return row
        good.append(row)
    cond = {name: torch.stack([torch.as_tensor(c[name]) for _, c in good]) for name in good[0][1]}
    return torch.stack([x for x, _ in good]), cond


def _move(batch: Batch, device: torch.device) -> Batch:
    x, cond = batch
    return x.to(device, non_blocking=True), {n: v.to(device, non_blocking=True) for n, v in cond.items()}


class ShuffledOrder:
    """The order of examples: row r of step k is position k batch_size + r of an endless list of permutations, one an
    epoch.

    A batch at the end of an epoch is filled from the next epoch, so no example is left out, and a data set smaller than
    a batch is repeated. The order does not depend on the number of processes or on `train.accumulate`.

    Args:
        count: number of examples.
        batch_size: rows of a global batch.
        seed: seed of the permutations.
        device: the device of the indices.

    Raises:
        DataError: `count` is 0.
    """

    def __init__(self, count: int, batch_size: int, seed: int, device: torch.device | str = "cpu") -> None:
        if count < 1:
            raise DataError("there are no examples to train on", code="DK320", fix="check the folder of the data set")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.device = torch.device(device)
        self._epochs: dict[int, Tensor] = {}

    def rows(self, step: int, start: int, stop: int) -> Tensor:
        """Return the indices of the examples in these rows of the global batch.

        Args:
            step: number of the step, from 0.
            start: first row.
            stop: row after the last.

        Returns:
            Indices: (stop - start,) long, on the device.
        """
        position, missing = step * self.batch_size + start, stop - start
        parts = []
        while missing:
            epoch, at = divmod(position, self.count)
            part = self._permutation(epoch)[at : at + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            # Drawn on the CPU whatever the device, so that the order is the same everywhere.
            order = torch.randperm(self.count, generator=generator("cpu", self.seed, "order", epoch))
            if self.device.type == "cuda":
                order = order.pin_memory().to(self.device, non_blocking=True)
            kept = max(2, self.batch_size // self.count + 2)
            while len(self._epochs) >= kept:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = order
        return self._epochs[epoch]


def divide(start: int, stop: int, parts: int) -> list[range]:
    """Divide a range into consecutive parts whose lengths differ by at most 1.

    Args:
        start: first number.
        stop: number after the last.
        parts: number of parts.

    Returns:
        Ranges that cover [start, stop), without empty ranges.
    """
    total = stop - start
    bounds = [start + total * part // parts for part in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(bounds) if b > a]
