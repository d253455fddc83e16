"""Samples as files and as arrays that a report shows."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..data import Data
from ..report import pictures
from ..train import files

Array = NDArray[Any]


def is_image(data: Data) -> bool:
    """Whether examples can be shown: two dimensions of 1 or 3 channels."""
    return len(data.spec.size) == 2 and data.spec.channels in (1, 3)


def viewable(data: Data, x: Tensor) -> Array:
    """Examples as a report shows them: (N, H, W, C) uint8 for images of 1 or 3 channels, else (N, D) float.

    x: (N, C, *S), decoded.
    """
    if is_image(data):
        return pictures.as_images(x)
    return x.float().flatten(1).numpy()


def frames(data: Data, x: Tensor) -> Array:
    """The same for frames (K, B, C, *S) -> (K, B, H, W, C) or (K, B, D)."""
    rows = viewable(data, x.flatten(0, 1))
    return rows.reshape(*x.shape[:2], *rows.shape[1:])


def save_png(path: Path, data: Data, x: Tensor) -> bool:
    """A grid of images; False where the data is none."""
    shown = viewable(data, x)
    if shown.ndim == 4:
        files.replace(path, pictures.png(pictures.image_grid(shown)))
        return True
    return False


def save_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Named arrays in one uncompressed file, replaced whole."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    files.replace(path, buffer.getvalue())


def load_npz(path: Path) -> dict[str, Array]:
    """The arrays of a file that `save_npz` wrote; nothing in it is ever unpickled."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
