"""Images: a folder of pictures."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from diffkit.data import Data, DataSpec, Part, Split
from diffkit.errors import DataError

from .fingerprint import fingerprint
from .holdout import check_amount, divide
from .location import archive_note, locate, require
from .parts import labelled
from .picture_files import Errors, PictureFiles, replaced, unusable
from .pictures import SUFFIXES, Color, PictureError, find_pictures, picture_size, quiet, read_picture

RESIDENT = 1 << 30  # bytes of decoded pictures up to which they are kept in memory
Found = TypeVar("Found")


@dataclass(frozen=True)
class Images(Data):
    """PNG, JPEG, WEBP and BMP files below `path`, sub-folders included: x (3, H, W), or (1, H, W) with `color: grey`.

    `size` scales the shorter side to it (Lanczos) and crops the centre to a square; without it all must be equal.
    `labels: true` takes the names of the sub-folders for classes. A hash of its name decides whether a picture is
    held out (`held_out`: a number, or a fraction). All files are examined before training, and every unusable one is
    reported; `errors: skip` puts the next usable picture in the place of each, so that no other one moves, up to
    `max_skipped`. `resident: auto` keeps up to 1 GiB decoded, else `workers` processes decode as training goes.
    Raises DataError: DK301 missing, DK304 too few, DK305 labels, DK306 unequal sizes, DK309 unusable files.
    """

    path: str
    size: Annotated[int, Field(ge=1)] | None = None
    color: Color = "rgb"
    labels: bool = False
    held_out: Annotated[int | float, Field(gt=0)] = 0.1
    errors: Errors = "error"
    max_skipped: Annotated[int, Field(ge=1)] = 100
    resident: Literal["auto", "always", "never"] = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        check_amount(self.held_out)

    @property
    def spec(self) -> DataSpec:
        return self._spec

    def split(self, part: Part) -> Split:
        return self._parts[part]

    def fingerprint(self) -> str:
        return fingerprint(self, self._root, self._names)

    @cached_property
    def _spec(self) -> DataSpec:
        names = self._classes
        size = self._headers[0] if self.size is None else (self.size, self.size)
        channels = 3 if self.color == "rgb" else 1
        return DataSpec(channels, size, len(names) or None, bounded=True, bins=256, class_names=names)

    @cached_property
    def _root(self) -> Path:
        return require(locate(self.path), "the folder of images", "name a folder: data.path", folder=True)

    @cached_property
    def _names(self) -> list[str]:
        names = find_pictures(self._root)
        if not names:
            others = Counter(file.suffix for file in self._root.rglob("*") if file.is_file())
            raise DataError(
                f"no image below {self._root}",
                code="DK304",
                choices=f"files that end in {', '.join(SUFFIXES)}",
                fix="name the folder that holds them: data.path",
                notes=[*archive_note(self._root), f"found: {dict(others.most_common(5)) or 'nothing'}"],
            )
        return names

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Names of the sub-folders, sorted; empty without labels."""
        if not self.labels:
            return ()
        loose = [name for name in self._names if "/" not in name]
        if loose:
            raise DataError(
                f"{len(loose)} images lie in no sub-folder of {self._root}, so that they have no class: {loose[0]}",
                code="DK305",
                fix="put each class into a folder of its own, or set data.labels: false",
            )
        return tuple(sorted({name.split("/")[0] for name in self._names}))

    @cached_property
    def _headers(self) -> tuple[tuple[int, int], dict[str, str]]:
        """The common (H, W), and why each of the unusable files is so, as far as headers tell."""
        sizes, reasons = self._each(lambda name: picture_size(self._root / name))
        kinds = Counter(sizes.values())
        if not kinds:
            raise unusable(reasons, len(self._names))
        if len(kinds) > 1 and self.size is None:
            examples = [f"{next(n for n, s in sizes.items() if s == kind)}: {kind[1]}x{kind[0]}" for kind in kinds]
            raise DataError(
                f"the images below {self._root} have {len(kinds)} different sizes",
                code="DK306",
                fix="set data.size, to which each is scaled and cropped",
                notes=[f"{example} (width x height)" for example in examples[:5]],
            )
        return kinds.most_common(1)[0][0], reasons

    def _each(self, use: Callable[[str], Found]) -> tuple[dict[str, Found], dict[str, str]]:
        """`use` of every name, in threads (decoding releases the interpreter lock); and the reasons of failures."""

        def attempt(name: str) -> tuple[str, Found | None, str]:
            try:
                return name, use(name), ""
            except PictureError as error:
                return name, None, str(error)

        with quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = list(pool.map(attempt, self._names))
        found = {name: value for name, value, _ in outcomes if value is not None}
        return found, {name: reason for name, _, reason in outcomes if reason}

    @cached_property
    def _parts(self) -> Mapping[Part, Split]:
        rows = divide(self._names, self.held_out)
        if self._keep:
            pictures, reasons = self._each(lambda name: read_picture(self._root / name, self.size, self.color))
        else:
            pictures, reasons = {}, self._headers[1]
        self._judge(reasons)
        train, held_out = (replaced([name not in reasons for name in self._names], part) for part in rows)
        return {"train": self._part(train, pictures), "held-out": self._part(held_out, pictures)}

    @property
    def _keep(self) -> bool:
        channels, *size = self.spec.shape
        total = len(self._names) * channels * size[0] * size[1]
        return self.resident == "always" or (self.resident == "auto" and total <= RESIDENT)

    def _judge(self, reasons: Mapping[str, str]) -> None:
        if not reasons:
            return
        if self.errors == "error":
            raise unusable(reasons, len(self._names))
        if len(reasons) > self.max_skipped:
            raise unusable(reasons, len(self._names), limit=self.max_skipped)
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        warnings.warn(f"skipped {len(reasons)} of {len(self._names)} images: {listed}", stacklevel=2)

    def _part(self, rows: list[int], pictures: Mapping[str, Tensor]) -> Split:
        names = tuple(self._names[row] for row in rows)
        labels = torch.tensor([self._classes.index(name.split("/")[0]) for name in names]) if self.labels else None
        if pictures:
            return labelled(torch.stack([pictures[name] for name in names]), labels)
        shape = self.spec.shape
        return PictureFiles(self._root, names, labels, self.size, self.color, shape, self.errors, self.max_skipped)
