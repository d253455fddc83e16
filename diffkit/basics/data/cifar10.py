"""CIFAR-10, read from its binary version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from diffkit.data import Data, DataSpec, InMemorySplit, Part
from diffkit.errors import DataError

from .fingerprint import fingerprint
from .location import archive_note, known_folder, require
from .parts import checked_labels, labelled

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES: dict[Part, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "held-out": ("test_batch.bin",),
}
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then red, green and blue, each row by row
BINARY = "the binary version (cifar-10-binary.tar.gz; it unpacks to cifar-10-batches-bin)"


@dataclass(frozen=True)
class CIFAR10(Data):
    """Photographs: x (3, 32, 32), 50,000 to train on and 10,000 (test_batch.bin) held out, 10 classes.

    `path`: the folder of the six .bin files, by default $DIFFKIT_DATA/cifar10, else data/cifar10.
    `labels: false` hides the classes, as unconditional papers do. The pickled "python version" is refused: data
    never becomes code. Raises DataError: DK301 a file is missing, DK302 damaged, DK303 pickled, DK305 wrong labels.
    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """

    path: str | None = None
    labels: bool = True

    @property
    def spec(self) -> DataSpec:
        names = CLASSES if self.labels else ()
        return DataSpec(3, (32, 32), len(names) or None, bounded=True, bins=256, class_names=names)

    def split(self, part: Part) -> InMemorySplit:
        return self._parts[part]

    def fingerprint(self) -> str:
        return fingerprint(self, self._root, [name for names in FILES.values() for name in names])

    @cached_property
    def _root(self) -> Path:
        fix = f"put {BINARY} there, or name its folder: data.path, or DIFFKIT_DATA for the folder above"
        root = require(known_folder(self.path, "cifar10"), "the folder of cifar10", fix, folder=True)
        root = root / "cifar-10-batches-bin" if (root / "cifar-10-batches-bin").is_dir() else root
        lacking = [name for names in FILES.values() for name in names if not (root / name).is_file()]
        if lacking and any((folder / "data_batch_1").is_file() for folder in (root, root / "cifar-10-batches-py")):
            raise DataError(
                f"{root} holds the python version of CIFAR-10, which is pickled: reading it would run code",
                code="DK303",
                fix=f"use {BINARY}",
            )
        if lacking:
            raise DataError(
                f"{root} lacks {', '.join(lacking)}", code="DK301", fix=f"use {BINARY}", notes=archive_note(root)
            )
        return root

    @cached_property
    def _parts(self) -> Mapping[Part, InMemorySplit]:
        return {part: self._read(names) for part, names in FILES.items()}

    def _read(self, names: tuple[str, ...]) -> InMemorySplit:
        batches = [_batch(self._root / name) for name in names]
        labels = [
            checked_labels(batch[:, 0], len(batch), len(CLASSES), self._root / name)
            for name, batch in zip(names, batches)
        ]
        images = torch.from_numpy(np.concatenate([batch[:, 1:] for batch in batches]).reshape(-1, 3, 32, 32))
        return labelled(images, torch.cat(labels) if self.labels else None)


def _batch(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """The records of one file: (N, 3073) uint8."""
    size = path.stat().st_size
    if size == 0 or size % RECORD:
        raise DataError(
            f"{path} is damaged: {size} bytes are no whole number of records of {RECORD} bytes",
            code="DK302",
            fix="get the archive again and compare its checksum; the published files hold 30,730,000 bytes each",
        )
    return np.fromfile(path, dtype=np.uint8).reshape(-1, RECORD)
