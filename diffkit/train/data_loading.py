"""Data loading: raw batches by step and row, gathered on the device or streamed by worker processes; posteriors of a
codec that are kept on disk in place of raw examples.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from multiprocessing import active_children
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..codec import Codec, Posterior
from ..data import Augmentation, Data, FiniteAugmentation, InMemorySplit, Part, Split, stack
from ..errors import CheckpointError, DataError, DiffkitError, UsageError
from ..noise import generator
from ..runtime.memory import worker_killed
from ..runtime.progress import Progress
from ..runtime.signals import block_stop_signals, ignore_stop_signals
from ..storage.atomic import dump_json, parse_object, read_bounded, sync_directory, write_synced, writing
from ..storage.lock import close_inherited_locks, exclusively

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


MANIFEST = "latents.json"
PARTS: tuple[Part, ...] = ("train", "held-out")
MAX_RESIDENT_BYTES = 2 << 30
"""Size of stored posteriors up to which they are held on the device; larger ones are read example by example."""
ENCODED_TOGETHER = 64
MAX_MANIFEST_BYTES = 1 << 20


@torch.no_grad()
def posterior_of_each(codec: Codec, x: Tensor) -> Posterior:
    """Return the posterior of x: (B, C, *S); each row is encoded alone, so that it does not depend on the batch."""
    found = [codec.posterior(row) for row in torch.split(x, 1)]
    std = [one.std for one in found if one.std is not None]
    return Posterior(torch.cat([one.mean for one in found]), torch.cat(std) if std else None)


def stored_posterior(x: Tensor) -> Posterior:
    """Return the posterior of stored examples: (B, 1, 1 or 2, C', *S'), their mean and, if present, their std."""
    moments = x[:, 0]
    return Posterior(moments[:, 0], moments[:, 1] if moments.shape[1] == 2 else None)


def chosen_variant(x: Tensor, variant: Tensor, variants: int) -> Tensor:
    """Return the rows of a variant of an augmentation; those of the first augmentation change slowest.

    Args:
        x: Stored examples: (B, V, K, C', *S').
        variant: The variant of each example: (B,) long.
        variants: The number of variants.

    Returns:
        (B, V / variants, K, C', *S').
    """
    return x.reshape(len(x), variants, -1, *x.shape[2:])[torch.arange(len(x), device=x.device), variant]


@dataclass(frozen=True)
class LatentCache:
    """Posteriors of all examples in a folder: (N, V, K, C', *S') float32, V variants of the augmentations, K moments.

    `meaning` is all that they depend on; the folder states it, beside the hashes of the files.
    """

    folder: Path
    meaning: Mapping[str, Any]

    def split(self, part: Part) -> Split:
        """Return the posteriors of a part, as raw examples; held on the device if they are not too large."""
        names = self._content()["conditions"][part]
        arrays = [np.load(self.folder / f"{part}.{name}.npy", mmap_mode="c") for name in ("x", *names)]
        x, *cond = (torch.from_numpy(array) for array in arrays)
        made = InMemorySplit(x, dict(zip(names, cond, strict=True)))
        return made if x.numel() * 4 <= MAX_RESIDENT_BYTES else _Mapped(made)

    def fault(self) -> str | None:
        """Return the reason why the folder cannot be used; None for a whole folder of the same meaning."""
        try:
            content = self._content()
            if content.get("meaning") != self.meaning:
                return "it holds other latents"
            for name, wanted in content["files"].items():
                if _file_hash(self.folder / Path(name).name) != wanted:
                    return f"{name} is damaged"
        except (CheckpointError, OSError, KeyError, AttributeError) as error:
            return str(error)
        return None

    def write(
        self, data: Data, codec: Codec, augment: Sequence[Augmentation], device: torch.device, progress: Progress
    ) -> None:
        """Encode all examples and write the folder: it is there as a whole, or not at all.

        Args:
            data: The data set.
            codec: The codec, on the device.
            augment: The augmentations of training examples.
            device: The device to compute on.
            progress: Displays the number of encoded examples.

        Raises:
            UsageError: DK058, an augmentation has no fixed number of results.
            ResourceError: The folder cannot be written.
        """
        finite = [one for one in augment if isinstance(one, FiniteAugmentation)]
        if endless := [type(one).__name__ for one in augment if not isinstance(one, FiniteAugmentation)]:
            raise UsageError(
                f"latents cannot be kept: {endless[0]} gives an example no fixed number of results",
                code="DK058",
                fix="remove it from data.augment, or set codec.cache: false",
            )
        temporary = self.folder.with_name(f".tmp-{self.folder.name}-{uuid.uuid4().hex}")
        try:
            with writing(self.folder, "make it writable, free some space, or set codec.cache: false"), progress:
                temporary.mkdir(parents=True)
                progress.start(0, sum(len(data.split(part)) for part in PARTS))
                train = list(product(*(range(one.variants) for one in finite)))
                done = _write_part(temporary / "train", data, codec, finite, train, device, progress, 0)
                _write_part(temporary / "held-out", data, codec, [], [()], device, progress, done)
                names = sorted(path.name for path in temporary.iterdir())
                conditions = {
                    part: [one.split(".")[1] for one in names if one.startswith(f"{part}.")] for part in PARTS
                }
                content = {
                    "meaning": self.meaning,
                    "files": {name: _file_hash(temporary / name) for name in names},
                    "conditions": {part: [one for one in found if one != "x"] for part, found in conditions.items()},
                }
                write_synced(temporary / MANIFEST, dump_json(content))
                sync_directory(temporary)
                with exclusively(self.folder.parent):
                    if self.fault() is not None:  # else another run has written the same meanwhile, and may read it
                        shutil.rmtree(self.folder, ignore_errors=True)
                        os.replace(temporary, self.folder)
                        sync_directory(self.folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _content(self) -> dict[str, Any]:
        return parse_object(read_bounded(self.folder / MANIFEST, MAX_MANIFEST_BYTES), MANIFEST)


class _Mapped(Split):
    """A split whose rows are read from the disk one by one."""

    def __init__(self, inner: InMemorySplit) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, cond = self.inner[index]
        return x.clone(), {name: value.clone() for name, value in cond.items()}


def _write_part(
    path: Path,
    data: Data,
    codec: Codec,
    augment: Sequence[FiniteAugmentation],
    variants: Sequence[tuple[int, ...]],
    device: torch.device,
    progress: Progress,
    done: int,
) -> int:
    """Write the posteriors and the conditions of a part as .npy files; return the number of examples written so far."""
    part: Part = "train" if path.name == "train" else "held-out"
    split, out = data.split(part), None
    conditions: dict[str, list[Tensor]] = {}
    for start in range(0, len(split), ENCODED_TOGETHER):
        rows = range(start, min(start + ENCODED_TOGETHER, len(split)))
        raw, cond = stack(split, rows)
        for name, value in cond.items():
            conditions.setdefault(name, []).append(value.cpu())
        results = []
        for variant in variants:
            x = data.to_model_range(raw.to(device))
            for one, chosen in zip(augment, variant, strict=True):
                x = one.changed(x, torch.full((len(x),), chosen, device=device))
            found = posterior_of_each(codec, x)
            results.append(torch.stack([found.mean, *([] if found.std is None else [found.std])], dim=1))
        moments = torch.stack(results, dim=1).cpu().numpy()
        if out is None:
            shape = (len(split), *moments.shape[1:])
            out = np.lib.format.open_memmap(path.with_name(f"{part}.x.npy"), "w+", moments.dtype, shape)
        out[rows.start : rows.stop] = moments
        progress.advance(done + rows.stop)
    if out is None:
        np.save(path.with_name(f"{part}.x.npy"), np.zeros((0, 1, 1, 1), np.float32))
    else:
        out.flush()
    for name, parts in conditions.items():
        np.save(path.with_name(f"{part}.{name}.npy"), torch.cat(parts).numpy())
    return done + len(split)


def _file_hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
