"""Arrays: images or vectors in NumPy files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from diffkit.data import Data, DataSpec, Part, Split
from diffkit.errors import DataError

from .array_rows import Array, ArrayRows, Layout, oriented, resolved
from .fingerprint import fingerprint
from .holdout import check_amount, divide
from .location import archive_note, locate, require
from .npy import open_npy, read_npz
from .parts import checked_labels, divided

RESIDENT = 1 << 30  # bytes up to which a set is kept in memory


@dataclass(frozen=True)
class Arrays(Data):
    """Examples from NumPy files; nothing is ever unpickled.

    `path`: an .npz file or a folder of .npy files, in which `images` and `labels` name the arrays; or one .npy file,
    without labels. Shapes: images (N, H, W, C), (N, C, H, W) or (N, H, W), vectors (N, D); `layout: auto` takes the
    one axis of at most 4 for the channels. uint8 is shown to the model in [-1, 1], floats as they are;
    `bounded: true` declares that they lie in [-1, 1]. Labels are 0..K-1. `held_out`: a number of examples, or a
    fraction; `resident: auto` streams a .npy file above 1 GiB through `workers` processes.
    Raises DataError: DK301 missing, DK302 damaged, DK303 pickled, DK304 too few, DK305 labels, DK307 a value that is
    not finite or not bounded, DK308 shape or type.
    """

    path: str
    images: str = "images"
    labels: str | None = None
    layout: Layout = "auto"
    bounded: bool = False
    held_out: Annotated[int | float, Field(gt=0)] = 0.1
    resident: Literal["auto", "always", "never"] = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        check_amount(self.held_out)
        if self.path.endswith(".npy") and self.labels is not None:
            raise ValueError("one .npy file holds no labels; give the folder that holds both files, or an .npz")
        if self.path.endswith(".npz") and self.resident == "never":
            raise ValueError("an .npz file cannot be streamed; save .npy files, or leave resident at auto")

    @property
    def spec(self) -> DataSpec:
        return self._spec

    @cached_property
    def _spec(self) -> DataSpec:
        channels, *size = oriented(self._images[:1], self._layout, source=self._source).shape[1:]
        discrete = self._images.dtype == np.uint8
        classes = None if self._labels is None else int(self._labels.max()) + 1
        return DataSpec(channels, tuple(size), classes, self.bounded or discrete, bins=256 if discrete else None)

    def split(self, part: Part) -> Split:
        return self._parts[part]

    def fingerprint(self) -> str:
        if self._root.is_file():
            return fingerprint(self, self._root.parent, [self._root.name])
        return fingerprint(self, self._root, [f"{key}.npy" for key in (self.images, self.labels) if key])

    @cached_property
    def _root(self) -> Path:
        fix = "name an .npz file, a .npy file or a folder of .npy files: data.path"
        return require(locate(self.path), "the array data", fix)

    @property
    def _source(self) -> str:
        return f"{self._root}: {self.images}" if self._root.suffix != ".npy" else str(self._root)

    def _open(self, key: str) -> Array:
        if self._root.suffix == ".npz":
            return read_npz(self._root, key)
        if self._root.is_file():
            return open_npy(self._root)
        path = self._root / f"{key}.npy"
        if not path.is_file():
            raise DataError(
                f"{self._root} holds no {key}.npy",
                code="DK301",
                choices=sorted(file.stem for file in self._root.glob("*.npy")) or "nothing: it has no .npy file",
                fix="name the arrays: data.images and data.labels, without .npy",
                notes=archive_note(self._root),
            )
        return open_npy(path)

    @cached_property
    def _images(self) -> Array:
        images = self._open(self.images)
        if images.ndim and len(images) == 0:
            raise DataError(f"{self._source} holds no examples", code="DK304", fix="save at least two examples")
        return images

    @cached_property
    def _layout(self) -> Layout:
        return resolved(self.layout, self._images.shape, self._source)

    @cached_property
    def _labels(self) -> Tensor | None:
        if self.labels is None:
            return None
        return checked_labels(self._open(self.labels), len(self._images), None, f"{self._root}: {self.labels}")

    @cached_property
    def _parts(self) -> Mapping[Part, Split]:
        layout, labels = self._layout, self._labels
        rows = divide([str(i) for i in range(len(self._images))], self.held_out)
        small = self._images.nbytes <= RESIDENT or self._root.suffix == ".npz"
        if self.resident == "always" or (self.resident == "auto" and small):
            return divided(oriented(self._images, layout, source=self._source, bounded=self.bounded), labels, rows)
        path = self._root if self._root.is_file() else self._root / f"{self.images}.npy"
        train, held_out = (self._stream(path, torch.as_tensor(part)) for part in rows)
        return {"train": train, "held-out": held_out}

    def _stream(self, path: Path, rows: Tensor) -> ArrayRows:
        labels = None if self._labels is None else self._labels[rows]
        return ArrayRows(path, rows, labels, self._layout, self.bounded)
