"""Conditions in arrays: the type of an array determines whether its rows are classes, numbers, texts or pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit import ConditionSpec, DataError, as_bytes

from .splits import check_labels

Array = NDArray[Any]
Convert = Callable[[Array, Sequence[int] | Array], Tensor]
"""Converts rows of a picture, a series or a volume, with their numbers, to (N, C, *S)."""
CHUNK = 4096
"""Rows that are examined at a time."""
ALLOWED = "integers (N,), 0 to K - 1: a class; floats; uint8 pictures; texts (N,)"


@dataclass(frozen=True)
class ConditionRows:
    """The rows of an array, converted when they are read; `convert` is None for rows that keep their shape.

    A worker process maps a file of its own.
    """

    spec: ConditionSpec
    values: Array | Tensor
    convert: Convert | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(self.values, np.memmap):
            return ConditionRows, (self.spec, self.values, self.convert)
        array: Any = self.values
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        mapping = {"dtype": array.dtype, "offset": array.offset, "shape": array.shape, "order": order}
        return _mapped, (self.spec, self.convert, array.filename, mapping)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.values.nbytes

    def __call__(self, at: Sequence[int] | Array) -> Tensor:
        """Return the rows `at`: (n, *spec.shape)."""
        if isinstance(self.values, Tensor):
            return self.values[torch.as_tensor(at)]
        part = self.values[at]
        if self.convert is not None:
            return self.convert(part, at)
        with np.errstate(over="ignore"):
            wanted = part.dtype if part.dtype == np.uint8 else np.float32
            return torch.from_numpy(np.array(part, dtype=wanted, order="C"))


def _mapped(spec: ConditionSpec, convert: Convert | None, file: str, mapping: dict[str, Any]) -> ConditionRows:
    return ConditionRows(spec, np.memmap(file, mode="r", **mapping), convert)


def check_condition(shape: tuple[int, ...], dtype: np.dtype[Any], count: int, source: str) -> None:
    """Check that an array can hold a condition of each example, before it is read.

    Args:
        shape: Shape in the header of the array.
        dtype: Type in the header.
        count: Number of examples.
        source: File and member, for messages.

    Raises:
        DataError: DK305, wrong shape or type.
    """
    if len(shape) == 0 or shape[0] != count or 0 in shape:
        fix = f"store exactly one row for each example: shape ({count}, ...)"
        raise DataError(f"{source}: {shape} rows for {count} examples", code="DK305", fix=fix)
    single = len(shape) == 1
    if not (dtype.kind == "f" or (dtype.kind in "iuUS" and single) or (dtype == np.uint8 and not single)):
        fix = "convert it: array.astype('float32'), or array.astype('uint8') of pictures"
        message = f"{source}: a condition cannot be {dtype} of shape {shape}"
        raise DataError(message, code="DK305", choices=ALLOWED, fix=fix)


def condition_rows(array: Array, axes: int, convert: Convert, source: str) -> ConditionRows:
    """Describe the rows of an array.

    Args:
        array: One row for each example.
        axes: Number of axes of the array of examples.
        convert: Converts pictures, for an array with as many axes, or one less if it has no axis of channels.
        source: File and member, for messages.

    Returns:
        The rows.

    Raises:
        DataError: DK305, a class is out of range, or a number is not finite.
    """
    if array.dtype.kind in "US":
        texts = [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in array.tolist()]
        length = max(1, *(len(text.encode("utf-8", "replace")) for text in texts))
        return ConditionRows(ConditionSpec((length,), "text"), as_bytes(texts, length))
    if array.dtype.kind in "iu" and array.ndim == 1:
        classes = check_labels(array, len(array), None, source)
        return ConditionRows(ConditionSpec((), "long", int(classes.max()) + 1), classes)
    pictures = axes > 2 and array.ndim > 2 and axes - array.ndim in (0, 1)
    rows = ConditionRows(ConditionSpec(), array, convert if pictures else None)
    shape = tuple(rows(range(1)).shape[1:])
    if array.dtype.kind == "f" and not pictures:
        for start in range(0, len(array), CHUNK):
            bad = torch.nonzero(~torch.isfinite(rows(range(start, min(start + CHUNK, len(array))))))
            if len(bad):
                message = f"{source}: a value of example {start + int(bad[0, 0])} is not finite, or too large"
                raise DataError(message, code="DK305", fix="remove or repair the examples that hold NaN or infinity")
    return ConditionRows(ConditionSpec(shape, "uint8" if array.dtype == np.uint8 else "float"), array, rows.convert)
