"""Pictures: image files as uint8 arrays, whatever their mode, and a reason where one cannot be used."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
LARGEST = 64_000_000  # pixels; a small file may claim any number of them
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Color = Literal["rgb", "grey"]


class PictureError(Exception):
    """This file cannot be used; the message is the reason."""


def find_pictures(root: Path) -> list[str]:
    """Paths below `root`, relative and with slashes, sorted; hidden files and folders are left out."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = Path(folder).relative_to(root)
        found += [
            (inner / name).as_posix() for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def picture_size(path: Path) -> tuple[int, int]:
    """(H, W) as it will be decoded, from the header alone. Raises PictureError."""
    with _opened(path) as image:
        return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)


def read_picture(path: Path, size: int | None, color: Color) -> Tensor:
    """uint8 (C, H, W); with `size` scaled until the shorter side has it (Lanczos), then cropped at the centre.

    Turned upright as its EXIF data says; 16-bit grey is brought to 8 bits; what is transparent becomes white.
    Raises PictureError.
    """
    with _opened(path) as image:
        turn = UPRIGHT.get(_orientation(image))
        picture = _eight_bits(image).convert("RGB" if color == "rgb" else "L")
        picture = picture if turn is None else picture.transpose(turn)
        if size is not None and picture.size != (size, size):
            picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if color == "grey" else pixels.permute(2, 0, 1).contiguous()


def _orientation(image: Image.Image) -> int:
    """How the camera was held, 1 to 8; 5 and more swap the sides. To be asked before the pixels are decoded."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # a PNG may hold it behind its pixels, which would have to be decoded to find it
    return int(image.getexif().get(ORIENTATION, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The same picture in a mode that `convert` brings to RGB or L without loss of meaning."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise PictureError(f"grey values from {values.min()} to {values.max()} are not 16-bit")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise PictureError("floating-point pixels; store it as 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture)
    return image


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back Pillow's warnings about odd metadata and many pixels; enter it in one thread only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file, checked for its size before any pixel is decoded; whatever goes wrong inside is a PictureError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise PictureError(f"{image.width}x{image.height} pixels are more than {LARGEST:,}")
            yield image
    except Image.DecompressionBombError as error:
        raise PictureError("more pixels than any photograph has") from error
    except UnidentifiedImageError as error:
        raise PictureError("empty file" if path.stat().st_size == 0 else "no PNG, JPEG, WEBP or BMP image") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, MemoryError) as error:
        raise PictureError(f"damaged: {error or type(error).__name__}") from error
