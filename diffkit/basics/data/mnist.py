"""MNIST and Fashion-MNIST, read from the IDX files in which they are published, gzipped or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch

from diffkit.data import Data, DataSpec, InMemorySplit, Part
from diffkit.errors import DataError

from .fingerprint import fingerprint
from .idx import read_idx
from .location import archive_note, known_folder, require
from .parts import checked_labels, labelled

STEMS: dict[Part, str] = {"train": "train", "held-out": "t10k"}


@dataclass(frozen=True)
class IdxImages(Data):
    """28x28 grey images in four IDX files; the files named t10k are the held-out part.

    `path`: their folder, by default $DIFFKIT_DATA/<name>, else data/<name>. `labels: false` hides the classes.
    Raises DataError: DK301 a file is missing, DK302 damaged, DK305 wrong labels.
    """

    path: str | None = None
    labels: bool = True
    folder: ClassVar[str]
    class_names: ClassVar[tuple[str, ...]]

    @property
    def spec(self) -> DataSpec:
        names = self.class_names if self.labels else ()
        return DataSpec(1, (28, 28), len(names) or None, bounded=True, bins=256, class_names=names)

    def split(self, part: Part) -> InMemorySplit:
        return self._parts[part]

    def fingerprint(self) -> str:
        files = [self._file(stem, kind) for stem in STEMS.values() for kind in ("images-idx3", "labels-idx1")]
        return fingerprint(self, files[0].parent, [file.name for file in files])

    @cached_property
    def _root(self) -> Path:
        fix = (
            f"put the four {self.folder} files (train-images-idx3-ubyte.gz, ...) there, "
            "or name their folder: data.path, or DIFFKIT_DATA for the folder above"
        )
        root = require(known_folder(self.path, self.folder), f"the folder of {self.folder}", fix, folder=True)
        return root / "raw" if (root / "raw").is_dir() else root

    def _file(self, stem: str, kind: str) -> Path:
        stems = (f"{stem}-{kind}-ubyte", f"{stem}-{kind.replace('-', '.')}-ubyte")
        for candidate in (self._root / f"{name}{suffix}" for name in stems for suffix in ("", ".gz")):
            if candidate.is_file():
                return candidate
        raise DataError(
            f"{self._root} lacks {stems[0]}.gz",
            code="DK301",
            fix=f"complete the four files of {self.folder}; {stems[0]} without .gz is read as well",
            notes=archive_note(self._root),
        )

    @cached_property
    def _parts(self) -> Mapping[Part, InMemorySplit]:
        return {part: self._read(stem) for part, stem in STEMS.items()}

    def _read(self, stem: str) -> InMemorySplit:
        path = self._file(stem, "images-idx3")
        images = read_idx(path, 3)
        if images.shape[1:] != (28, 28) or len(images) == 0:
            raise DataError(
                f"{path} holds {len(images)} images of size {images.shape[1:]}, not of (28, 28)",
                code="DK302",
                fix=f"check that it belongs to {self.folder}",
            )
        source = self._file(stem, "labels-idx1")
        labels = checked_labels(read_idx(source, 1), len(images), len(self.class_names), source)
        return labelled(torch.tensor(images)[:, None], labels if self.labels else None)


class MNIST(IdxImages):
    """Handwritten digits: x (1, 28, 28), 60,000 to train on and 10,000 (t10k) held out, 10 classes.

    Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition".
    """

    folder = "mnist"
    class_names = tuple("0123456789")


class FashionMNIST(IdxImages):
    """Articles of clothing: x (1, 28, 28), 60,000 to train on and 10,000 (t10k) held out, 10 classes.

    Source: Xiao, Rasul & Vollgraf 2017 (arXiv:1708.07747), table 2.
    """

    folder = "fashion-mnist"
    class_names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
