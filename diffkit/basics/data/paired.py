"""Paired pictures: a condition that is a picture for each picture, in a second folder or a column of file names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from diffkit import DataError

from .columns import Table, without
from .files import require
from .pictures import Color, PictureError, find_pictures, picture_size, read_picture

Given = str | dict[str, str | int | bool]
"""A folder beside that of the pictures; or a mapping of `folder` or `column`, and of `size`, `color` and `smooth`."""
OPTIONS: Mapping[str, type] = {"folder": str, "column": str, "size": int, "color": str, "smooth": bool}


@dataclass(frozen=True)
class Paired:
    """Where the pictures of the condition `name` lie, and how they are read: `files` has one for each picture.

    size    length to which the shorter side is scaled before the centre is cropped to a square; None keeps the picture
    color   "rgb" or "grey"
    smooth  whether scaling averages (Lanczos) or takes the nearest pixel, as for classes of pixels
    extra   files of the folder that belong to no picture
    """

    name: str
    root: Path = field(repr=False)
    files: Mapping[str, str] = field(repr=False)
    size: int | None
    color: Color
    smooth: bool = True
    extra: int = field(default=0, repr=False)

    def read(self, picture: str) -> Tensor:
        """Decode the partner of a picture: uint8 (C, H, W). Raises PictureError."""
        file = self.files[picture]
        try:
            return read_picture(self.root / file, self.size, self.color, smooth=self.smooth)
        except PictureError as error:
            raise PictureError(f"{self.name} {file}: {error}") from error

    def shape(self, sizes: Mapping[str, tuple[int, int]]) -> tuple[int, int, int]:
        """Return the common shape (C, H, W), from headers.

        Args:
            sizes: (H, W) of the pictures.

        Returns:
            The shape.

        Raises:
            DataError: DK312, a partner has another ratio of width to height than its picture, or without `size` the
                partners have several sizes; DK309, one cannot be read.
        """
        found = Counter[tuple[int, int]]()
        for picture, (height, width) in sizes.items():
            file = self.root / self.files[picture]
            try:
                high, wide = picture_size(file)
            except PictureError as error:
                message = f"{file} cannot be used as {self.name}: {error}"
                raise DataError(message, code="DK309", fix="repair it, or remove it and its picture") from error
            even = (high == height) == (wide == width) and abs(high * width - wide * height) < max(width, height)
            if not even:
                own = f"{file} has {wide}x{high} pixels, its picture {picture} {width}x{height}"
                message = f"{own}: they do not cover the same area"
                fix = "crop both to the same area, so that width and height have one ratio"
                raise DataError(message, code="DK312", fix=fix)
            found[high, wide] += 1
        if self.size is None and len(found) > 1:
            listed = ", ".join(f"{wide}x{high}" for high, wide in list(found)[:5])
            message = f"the pictures of {self.name} have {len(found)} different sizes: {listed}"
            raise DataError(message, code="DK312", fix=f"set the size of data.pictures.{self.name}, or data.size")
        size = found.most_common(1)[0][0] if self.size is None else (self.size, self.size)
        return (3 if self.color == "rgb" else 1, *size)


def check_given(name: str, given: Given) -> None:
    """Raise ValueError unless an entry of `pictures` has a folder or a column, and options that it can have."""
    if isinstance(given, str):
        return
    for key, value in given.items():
        if key not in OPTIONS or type(value) is not OPTIONS[key]:
            known = ", ".join(f"{one} ({kind.__name__})" for one, kind in OPTIONS.items())
            raise ValueError(f"pictures.{name} cannot have {key}: {value!r}; it can have {known}")
    if ("folder" in given) == ("column" in given):
        raise ValueError(f"pictures.{name} requires either a folder or a column of file names")
    if given.get("color", "rgb") not in get_args(Color) or int(given.get("size", 1)) < 1:
        raise ValueError(f"pictures.{name} has a color of {' or '.join(get_args(Color))}, and a size of 1 or more")


def pair(
    name: str,
    given: Given,
    pictures: Sequence[str],
    root: Path,
    table: Table | None,
    order: Sequence[int],
    usual: Mapping[str, Any],
) -> Paired:
    """Find the partner of each picture.

    Args:
        name: Name of the condition.
        given: The entry of `pictures`.
        pictures: Names relative to `root`.
        root: The folder of the pictures.
        table: The table, for a column.
        order: The row of each picture in the table.
        usual: `size` and `color` of the pictures themselves, which partners have unless they are given.

    Returns:
        The partners.

    Raises:
        DataError: DK301, there is no such folder; DK312, a picture has no partner, or a row names an absent file.
    """
    options: dict[str, Any] = {"folder": given} if isinstance(given, str) else dict(given)
    folder, column = options.pop("folder", None), options.pop("column", None)
    options = {**usual, **options}
    if column is not None:
        assert table is not None
        files = table.files(column, root, order)
        return Paired(name, root, dict(zip(pictures, files, strict=True)), **options)
    what = f"the folder of {name}, beside {root.name},"
    other = require(root.parent / folder, what, f"name a folder: data.pictures.{name}", folder=True)
    names = find_pictures(other).names
    stems = {_stem(one): one for one in names} | {one: one for one in names}
    found = {picture: stems.get(picture) or stems.get(_stem(picture)) for picture in pictures}
    if lacking := [picture for picture, partner in found.items() if partner is None]:
        raise without(lacking, name, str(other), f"add {other / lacking[0]}")
    matched = {picture: partner for picture, partner in found.items() if partner is not None}
    return Paired(name, other, matched, extra=len(set(names) - set(matched.values())), **options)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
