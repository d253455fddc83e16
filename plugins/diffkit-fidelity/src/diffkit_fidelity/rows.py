"""Features in files: memory does not grow with the number of examples, and those of real data are kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import torch
from torch import Tensor

from diffkit import DataSpec, Peers, plain

from .extractor import Extractor

BLOCK = 1024
"""Rows that are in memory at a time."""
KEPT = 4
"""Sets of examples whose features one process keeps, in temporary files."""


class Rows:
    """A matrix (N, D) float32 in a file, written and read block by block; without a file, in a temporary one."""

    def __init__(self, file: BinaryIO | None = None, count: int = 0, width: int = 0) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile() if file is None else file  # noqa: SIM115 - closed with the object
        self.count, self.width = count, width
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return self.count

    def append(self, block: Tensor) -> None:
        """Write rows (B, D) behind those that are there."""
        self._file.write(block.float().contiguous().numpy().data)
        self.count, self.width = self.count + len(block), block.shape[1]

    def blocks(self, chosen: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the rows, or those with the given indices (M,), in ascending order: (at most BLOCK, D) float32."""
        wanted = torch.arange(self.count) if chosen is None else chosen.sort().values
        for start in range(0, self.count, BLOCK):
            inside = wanted[(wanted >= start) & (wanted < start + BLOCK)] - start
            if len(inside):
                size = min(BLOCK, self.count - start)
                self._file.seek(4 * start * self.width)
                data = np.frombuffer(self._file.read(4 * size * self.width), dtype=np.float32)
                yield torch.from_numpy(data.reshape(size, self.width).copy())[inside]


class Features:
    """Features (N, D) and scores of classes (N, K) of a set of examples, and the hash of these examples."""

    def __init__(self, features: Rows, scores: Rows | None, digest: str) -> None:
        self.features, self.scores, self.digest = features, scores, digest


_kept: OrderedDict[str, Features] = OrderedDict()


def features_of(
    x: Tensor,
    spec: DataSpec,
    extractor: Extractor,
    chosen: Tensor | None = None,
    *,
    keep: bool = False,
    peers: Peers | None = None,
) -> Features:
    """Extract features batch by batch, or take those of equal examples.

    Args:
        x: Examples (N, C, *S) in the range of the model.
        spec: The spec of the data.
        extractor: What extracts.
        chosen: The indices (M,) of the examples that are used; default all.
        peers: The processes that share the batches; default this one alone.
        keep: Keep the features on disk for later evaluations, which then have no scores.

    Returns:
        The features; all four metrics of one set share them.
    """
    digest = digest_of(x, spec, extractor, chosen)
    key = hashlib.sha256(f"{sorted(extractor.protocol().items())} {digest}".encode()).hexdigest()
    known = f"{key}{keep}"
    if known not in _kept:
        path = cache_folder() / f"{key}.rows" if keep and extractor.cached else None
        peers = peers or Peers()
        count = len(x) if chosen is None else len(chosen)
        features, scores = _read(path, count) if path is not None else None, None
        if peers.any(features is None) or features is None:
            features, scores = _extract(x, spec, extractor, chosen, peers)
            if path is not None:
                _write(path, features)
        _kept[known] = Features(features, scores, digest)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(known)
    return _kept[known]


def digest_of(x: Tensor, spec: DataSpec, extractor: Extractor, chosen: Tensor | None = None) -> str:
    """Compute the SHA-256 of examples as the extractor reads them.

    Args:
        x: Examples (N, C, *S).
        spec: The spec of the data.
        extractor: What rounds them.
        chosen: The indices (M,) of the examples that are used; default all.

    Returns:
        64 hexadecimal digits.
    """
    batches = _Batches(x, chosen, BLOCK)
    digest = hashlib.sha256(f"{(batches.count, *x.shape[1:])}".encode())
    for number in range(len(batches)):
        prepared = extractor.prepared(batches[number], spec)
        shown = prepared[:, :1] if prepared.stride(1) == 0 else prepared  # a grey channel that `expand` repeats
        digest.update(shown.contiguous().numpy().data)
    return digest.hexdigest()


class _Batches:
    """Batches of at most `size` of the chosen rows of x, which may lie in a file. Each is read on access."""

    def __init__(self, x: Tensor, chosen: Tensor | None, size: int) -> None:
        self.x, self.chosen, self.size = x, chosen, size
        self.count = len(x) if chosen is None else len(chosen)

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __getitem__(self, number: int) -> Tensor:
        rows = slice(number * self.size, (number + 1) * self.size)
        return self.x[rows] if self.chosen is None else self.x[self.chosen[rows]]


def _extract(x: Tensor, spec: DataSpec, extractor: Extractor, chosen: Tensor | None, peers: Peers) -> tuple[Rows, Rows]:
    features, scores, batches = Rows(), Rows(), _Batches(x, chosen, extractor.batch_size)
    for found in peers.in_order(lambda number: extractor(extractor.prepared(batches[number], spec)), len(batches)):
        for rows, block in zip((features, scores), found, strict=True):
            rows.append(block)
    return features, scores


def cache_folder() -> Path:
    """Return the folder of the features of training examples: $XDG_CACHE_HOME/diffkit/fidelity, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffkit" / "fidelity"


def _write(path: Path, rows: Rows) -> None:
    """Keep rows: their bytes, then their SHA-256. A folder that cannot be written to costs time, so it warns."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # removed with a file that is not complete
            with (Path(folder) / path.name).open("wb") as file:
                digest = hashlib.sha256()
                for block in rows.blocks():
                    digest.update(block.numpy().data)
                    file.write(block.numpy().data)
                file.write(digest.digest())
            os.replace(file.name, path)
    except OSError as error:
        message = f"features of the training examples are not kept in {path.parent}: {error}"
        warnings.warn(plain(message), stacklevel=2)


def _read(path: Path, count: int) -> Rows | None:
    """Return kept rows; None if there are none, or the file is damaged."""
    if not path.is_file():
        return None
    file = path.open("rb")
    bytes_ = path.stat().st_size - 32
    digest = hashlib.sha256()
    for start in range(0, bytes_, 1 << 20):
        digest.update(file.read(min(1 << 20, bytes_ - start)))
    if bytes_ <= 0 or bytes_ % (4 * count) or digest.digest() != file.read():
        file.close()
        return None
    return Rows(file, count, bytes_ // (4 * count))
