"""Files for the default data sets that read some, so that the laws can be applied to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def _pictures(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def arrays(folder: Path) -> Mapping[str, Any]:
    """An .npz file of 40 labelled images."""
    np.savez(folder / "examples.npz", images=_pictures(40), labels=np.arange(40) % 4)
    return {"path": str(folder / "examples.npz"), "labels": "labels"}


def images(folder: Path) -> Mapping[str, Any]:
    """Forty PNG files in two folders."""
    for i, picture in enumerate(_pictures(40)):
        place = folder / ("cats" if i % 2 else "dogs")
        place.mkdir(exist_ok=True)
        Image.fromarray(picture).save(place / f"{i:02}.png")
    return {"path": str(folder), "labels": True}


EXAMPLES: Mapping[tuple[str, str], Callable[[Path], Mapping[str, Any]]] = {
    ("data", "arrays"): arrays,
    ("data", "images"): images,
}
"""Options for an entry, made in an empty folder."""
