"""Latents: the posteriors of all examples, encoded once and kept on disk, which training reads in place of examples."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec, Posterior
from ..data import Augmentation, Data, FiniteAugmentation, InMemorySplit, Part, Split, stack
from ..errors import CheckpointError, StoppedError, UsageError
from ..runtime.progress import Progress
from ..storage.atomic import dump_json, parse_object, read_bounded, replace, sync_directory, write_synced, writing
from ..storage.lock import exclusively, locked

MANIFEST, ROWS, LOCK = "latents.json", "rows.json", "LOCK"
PARTS: tuple[Part, ...] = ("train", "held-out")
MAX_RESIDENT_BYTES = 2 << 30
"""Size of stored posteriors up to which they are held on the device; larger ones are read example by example."""
ENCODED_TOGETHER = 64
MAX_MANIFEST_BYTES = 1 << 20
KEPT_EVERY = 1024
"""Number of examples after which the encoded ones are written to the disk."""


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
        self,
        data: Data,
        codec: Codec,
        augment: Sequence[Augmentation],
        device: torch.device,
        progress: Progress,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Encode all examples and write the folder: it is there as a whole, or not at all. What a process that was
        stopped or killed has encoded is used by the next one.

        Args:
            data: The data set.
            codec: The codec, on the device.
            augment: The augmentations of training examples.
            device: The device to compute on.
            progress: Displays the number of encoded examples.
            stop: Called between batches; True ends the encoding.

        Raises:
            StoppedError: `stop` returned True.
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
        with (
            writing(self.folder, "make it writable, free some space, or set codec.cache: false"),
            progress,
            _draft_of(self.folder) as draft,
        ):
            encoding = _Encoding(data, codec, device, draft, progress, stop)
            train = list(product(*(range(one.variants) for one in finite)))
            names = encoding.part("train", finite, train), encoding.part("held-out", [], [()])
            draft.rows.unlink(missing_ok=True)
            content = {
                "meaning": self.meaning,
                "files": {path.name: _file_hash(path) for path in sorted(draft.path.glob("*.npy"))},
                "conditions": dict(zip(PARTS, names, strict=True)),
            }
            write_synced(draft.path / MANIFEST, dump_json(content))
            sync_directory(draft.path)
            with exclusively(_lock_of(self.folder)):
                if self.fault() is not None:  # else another run has written the same meanwhile, and may read it
                    shutil.rmtree(self.folder, ignore_errors=True)
                    (draft.path / LOCK).unlink()
                    os.replace(draft.path, self.folder)
                    sync_directory(self.folder.parent)

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


@dataclass(frozen=True)
class _Draft:
    """A folder that is not whole yet; `rows` states how many rows of each part are on the disk."""

    path: Path

    @property
    def rows(self) -> Path:
        """The file with the numbers of rows."""
        return self.path / ROWS

    def done(self, part: Part) -> int:
        """Return how many rows of a part an earlier process has encoded."""
        try:
            return int(parse_object(read_bounded(self.rows, MAX_MANIFEST_BYTES), self.rows.name)[part])
        except (CheckpointError, OSError, KeyError, TypeError, ValueError):
            return 0  # none, or it is damaged: encode again

    def keep(self, out: np.memmap[Any, Any], part: Part, rows: int) -> None:
        """Write the rows of a part to the disk, then their number."""
        out.flush()
        others = {one: self.done(one) for one in PARTS if one != part}
        replace(self.rows, dump_json({**others, part: rows}))


@contextmanager
def _draft_of(folder: Path) -> Iterator[_Draft]:
    """Return the draft of a folder, which this process alone writes: that of a process that has ended, or a new one.

    It is removed at the end, unless the process is stopped.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusively(_lock_of(folder)):
        found = [(path, locked(path / LOCK)) for path in sorted(folder.parent.glob(f".tmp-{folder.name}-*"))]
        ended = [(path, handle) for path, handle in found if handle is not None]
        if not ended:
            path = folder.with_name(f".tmp-{folder.name}-{uuid.uuid4().hex}")
            path.mkdir()
            handle = locked(path / LOCK)
            assert handle is not None
            ended = [(path, handle)]
        (path, handle), *others = ended
        for other, held in others:
            shutil.rmtree(other, ignore_errors=True)
            os.close(held)
    kept = False
    try:
        yield _Draft(path)
    except (StoppedError, KeyboardInterrupt):
        kept = True
        raise
    finally:
        with exclusively(_lock_of(folder)):
            if not kept:
                shutil.rmtree(path, ignore_errors=True)
            os.close(handle)


def _lock_of(folder: Path) -> Path:
    """Return the file that is locked while folders of latents get their names."""
    return folder.parent.with_name(f"{folder.parent.name}.lock")


@dataclass
class _Encoding:
    """Writes the posteriors and the conditions of the parts of a data set as .npy files of a draft."""

    data: Data
    codec: Codec
    device: torch.device
    draft: _Draft
    progress: Progress
    stop: Callable[[], bool]
    before: int = 0

    def __post_init__(self) -> None:
        self.progress.start(0, sum(len(self.data.split(part)) for part in PARTS))

    def part(self, part: Part, augment: Sequence[FiniteAugmentation], variants: Sequence[tuple[int, ...]]) -> list[str]:
        """Write a part. Returns the names of its conditions."""
        split, path = self.data.split(part), self.draft.path / f"{part}.x.npy"
        done, out = self.draft.done(part) if _has_rows(path, len(split)) else 0, None
        conditions: dict[str, list[Tensor]] = {}
        for start in range(0, len(split), ENCODED_TOGETHER):
            if self.stop():
                self._stopped(out, part, max(start, done))
            rows = range(start, min(start + ENCODED_TOGETHER, len(split)))
            raw, cond = stack(split, rows)
            for name, value in cond.items():
                conditions.setdefault(name, []).append(value.cpu())
            if rows.stop > done:
                moments = self._moments(raw, augment, variants)
                if out is None:
                    shape = (len(split), *moments.shape[1:])
                    out = np.lib.format.open_memmap(path, "r+" if done else "w+", moments.dtype, shape)
                out[rows.start : rows.stop] = moments
                if rows.stop % KEPT_EVERY == 0:
                    self.draft.keep(out, part, rows.stop)
            self.progress.advance(self.before + rows.stop)
        if out is not None:
            self.draft.keep(out, part, len(split))
        elif not len(split):
            np.save(path, np.zeros((0, 1, 1, 1), np.float32))
        for name, found in conditions.items():
            np.save(self.draft.path / f"{part}.{name}.npy", torch.cat(found).numpy())
        self.before += len(split)
        return sorted(conditions)

    @torch.no_grad()
    def _moments(
        self, raw: Tensor, augment: Sequence[FiniteAugmentation], variants: Sequence[tuple[int, ...]]
    ) -> np.ndarray[Any, Any]:
        """Return mean, and std if there is one, of every variant of raw examples (B, C, *S): (B, V, K, C', *S')."""
        results = []
        for variant in variants:
            x = self.data.to_model_range(raw.to(self.device))
            for one, chosen in zip(augment, variant, strict=True):
                x = one.changed(x, torch.full((len(x),), chosen, device=self.device))
            found = posterior_of_each(self.codec, x)
            results.append(torch.stack([found.mean, *([] if found.std is None else [found.std])], dim=1))
        return torch.stack(results, dim=1).cpu().numpy()

    def _stopped(self, out: np.memmap[Any, Any] | None, part: Part, rows: int) -> None:
        if out is not None:
            self.draft.keep(out, part, rows)
        total = sum(len(self.data.split(one)) for one in PARTS)
        message = f"stopped while latents are encoded; {self.before + rows} of {total} examples are kept"
        raise StoppedError(message, fix="run the same command again to continue")


def _has_rows(path: Path, count: int) -> bool:
    """Return whether a file is a whole array with `count` rows."""
    try:
        return len(np.load(path, mmap_mode="r")) == count
    except (OSError, ValueError, EOFError):
        return False


def content_hash(data: Data, progress: Progress) -> str:
    """Return the SHA-256 of all examples and conditions, for data whose `fingerprint` does not depend on them."""
    found, done = hashlib.sha256(), 0
    with progress:
        progress.start(0, sum(len(data.split(part)) for part in PARTS))
        for part in PARTS:
            split = data.split(part)
            for start in range(0, len(split), ENCODED_TOGETHER):
                x, cond = stack(split, range(start, min(start + ENCODED_TOGETHER, len(split))))
                for name, value in {"": x, **dict(sorted(cond.items()))}.items():
                    found.update(f"{part} {name} {value.dtype} {tuple(value.shape)}".encode())
                    found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
                done += len(x)
                progress.advance(done)
    return found.hexdigest()


def _file_hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
