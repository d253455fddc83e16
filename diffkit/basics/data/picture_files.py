"""Picture files as examples, read one by one where a set is too large to keep decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from diffkit.data import Cond, Split
from diffkit.errors import DataError

from .pictures import Color, PictureError, quiet, read_picture

Errors = Literal["error", "skip"]
LISTED = 200


def unusable(reasons: Mapping[str, str], count: int, *, limit: int | None = None) -> DataError:
    """The error that lists every unusable file of `count`; `limit`: how many would have been skipped."""
    notes = [f"{name}: {reason}" for name, reason in list(reasons.items())[:LISTED]]
    if len(reasons) > LISTED:
        notes.append(f"and {len(reasons) - LISTED} more")
    allowed = "" if limit is None else f", more than data.max_skipped = {limit}"
    return DataError(
        f"{len(reasons)} of {count} images cannot be used{allowed}",
        code="DK309",
        fix="repair or remove them" + (", or set data.errors: skip" if limit is None else ""),
        notes=notes,
    )


def replaced(good: Sequence[bool], rows: Sequence[int]) -> list[int]:
    """For each of `rows` itself where it is good, else the next good one of them, cyclically.

    So an unusable file moves no other example. Raises DataError DK304 where none is good.
    """
    sources = list(rows)
    following = next((row for row in rows if good[row]), None)
    if following is None:
        raise DataError("no image of one part can be used", code="DK304", fix="repair the images, or give more")
    for place in reversed(range(len(rows))):
        if good[rows[place]]:
            following = rows[place]
        sources[place] = following
    return sources


@dataclass(frozen=True)
class PictureFiles(Split):
    """The pictures `names` below `root`, decoded when asked for; a worker process gets only their names."""

    root: Path
    names: tuple[str, ...]
    labels: Tensor | None
    size: int | None
    color: Color
    shape: tuple[int, ...]
    errors: Errors
    max_skipped: int

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        index = range(len(self.names))[index]
        reasons: dict[str, str] = {}
        for place in range(index, index + len(self.names)):
            name = self.names[place % len(self.names)]
            try:
                with quiet():
                    x = read_picture(self.root / name, self.size, self.color)
                if tuple(x.shape) != self.shape:
                    raise PictureError(f"its shape {tuple(x.shape)} is not {self.shape}")
            except PictureError as error:
                reasons[name] = str(error)
                if self.errors == "error" or len(reasons) > self.max_skipped:
                    break
            else:
                return x, {} if self.labels is None else {"label": self.labels[place % len(self.names)]}
        limit = None if self.errors == "error" else self.max_skipped
        raise unusable(reasons, len(self.names), limit=limit)
