"""Rows of an array as examples: axes put in order, values checked, read one by one from a mapped file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.data import Cond, Split
from diffkit.errors import DataError

from .npy import open_npy

Array = NDArray[Any]
Layout = Literal["auto", "channels-last", "channels-first"]
MOST_CHANNELS = 4


def resolved(layout: Layout, shape: tuple[int, ...], source: object) -> Layout:
    """The layout of an array of images or vectors. Raises DataError DK308 where it has none or `auto` cannot tell."""
    if len(shape) < 2 or 0 in shape[1:]:
        raise DataError(
            f"{source}: shape {shape} holds no examples",
            code="DK308",
            fix="store vectors as (N, D), grey images as (N, H, W), colour images as (N, H, W, C)",
        )
    if len(shape) < 4 or layout != "auto":
        return layout
    last, first = shape[-1] <= MOST_CHANNELS, shape[1] <= MOST_CHANNELS
    if len(shape) > 4 or last == first:
        raise DataError(
            f"{source}: cannot tell which axis of shape {shape} holds the channels",
            code="DK308",
            choices=("channels-last", "channels-first"),
            fix="set data.layout",
        )
    return "channels-last" if last else "channels-first"


def oriented(rows: Array, layout: Layout, *, source: object, bounded: bool = False) -> Tensor:
    """Rows of the array, resolved `layout`, as x: (N, C, *S): uint8, or float32 where it holds floats.

    Raises DataError DK307 where a value is not finite, or `bounded` and outside [-1, 1]; DK308 for other types.
    """
    if rows.dtype != np.uint8 and not np.issubdtype(rows.dtype, np.floating):
        raise DataError(
            f"{source}: values are {rows.dtype}",
            code="DK308",
            choices="uint8 (0 to 255), float16, float32, float64",
            fix="convert them: array.astype('uint8') for images",
        )
    if rows.ndim == 3:
        rows = rows[:, None]
    elif rows.ndim > 3 and layout == "channels-last":
        rows = np.moveaxis(rows, -1, 1)
    x = torch.from_numpy(np.array(rows, dtype=np.uint8 if rows.dtype == np.uint8 else np.float32, order="C"))
    if x.is_floating_point():
        _check_values(x, source, bounded)
    return x


def _check_values(x: Tensor, source: object, bounded: bool) -> None:
    if not torch.isfinite(x).all():
        wrong, fix = "is not finite", "remove or repair the examples that hold NaN or infinity (float16 ends at 65504)"
    elif bounded and x.abs().max() > 1:
        wrong, fix = "lies outside [-1, 1]", "scale the values, or leave data.bounded at false"
    else:
        return
    bad = ~torch.isfinite(x) if "finite" in wrong else x.abs() > 1
    place = torch.nonzero(bad)[0].tolist()
    raise DataError(f"{source}: a value of example {place[0]} {wrong}: {float(x[tuple(place)])}", code="DK307", fix=fix)


@dataclass(frozen=True)
class ArrayRows(Split):
    """The examples at `rows`: (N,) long, of the .npy file `path`, which each process maps for itself."""

    path: Path
    rows: Tensor
    labels: Tensor | None
    layout: Layout
    bounded: bool

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        row = int(self.rows[index])
        source = f"{self.path}, example {row}"
        x = oriented(self._array[row : row + 1], self.layout, source=source, bounded=self.bounded)[0]
        return x, {} if self.labels is None else {"label": self.labels[index]}

    @cached_property
    def _array(self) -> Array:
        return open_npy(self.path)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_array"}
