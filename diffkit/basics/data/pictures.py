"""Pictures: find the files below a folder, and decode them one by one."""

from __future__ import annotations

import json
import os
import struct
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from diffkit import DataError

from . import files
from .columns import CAPTION
from .files import Stamp, cache_file, write_cache

Color = Literal["rgb", "grey"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SIDECARS = (".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".db", ".ini", ".log")
"""Files that usually lie beside pictures: leaving them out causes no warning."""
MAX_PIXELS = 64_000_000
"""Pixels of one picture; a small file may declare any number."""
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(Exception):
    """Raised for a file that cannot be used; the message is the reason."""


@dataclass
class Found:
    """The files below a folder: pictures by relative path with slashes, sorted, and the numbers of all other files.

    `texts` are the files that may be captions, `folders` the names of the sub-folders; `left_out` and `ignored` count
    unexpected and expected files by reason.
    """

    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)


def find_pictures(root: Path) -> Found:
    """Find the pictures below `root`, hidden ones excepted. Each folder is read once, links after all others."""
    found = Found()
    folders, links, seen = [""], list[str](), set[tuple[int, int]]()
    while folders or links:
        inner = folders.pop() if folders else links.pop()
        try:
            status = os.stat(root / inner)
            if (place := (status.st_dev, status.st_ino)) in seen:
                found.left_out["links to a folder that is read already"] += 1
                continue
            seen.add(place)
            entries = sorted(os.scandir(root / inner), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            if not inner:
                raise DataError(
                    f"{root} cannot be read: {error.strerror}", code="DK301", fix="allow reading it"
                ) from error
            found.left_out["folders that cannot be read"] += 1
            continue
        for entry in entries:
            name = f"{inner}/{entry.name}" if inner else entry.name
            suffix = os.path.splitext(entry.name)[1].lower().rstrip(".")
            if entry.name.startswith("."):
                found.ignored["hidden"] += 1
            elif os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
                (links if entry.is_symlink() else folders).append(name)
                if not inner:
                    found.folders.append(name)
            elif not (os.path.isfile(entry) if entry.is_symlink() else entry.is_file()):
                found.left_out["broken links" if entry.is_symlink() else "pipes, sockets or devices"] += 1
            elif suffix in SUFFIXES:
                found.names.append(name)
            else:
                found.texts += [name] * (suffix == CAPTION)
                (found.ignored if suffix in SIDECARS else found.left_out)[suffix or "without a suffix"] += 1
    found.names.sort()
    return found


class SizeCache:
    """The sizes of the pictures below a folder, kept between processes by name, bytes and time of each file.

    The file lies in $XDG_CACHE_HOME/diffkit, by default ~/.cache/diffkit. Folders of fewer than `files.MIN_CACHED`
    pictures have none, and a file written in the last two seconds is not kept, as it may change again within the
    resolution of its time. A cache that cannot be read or written is not an error.
    """

    def __init__(self, root: Path, names: Sequence[str], stamps: Sequence[Stamp]) -> None:
        self.names, self.known, self.stamps = names, dict[str, list[int]](), dict[str, list[int]]()
        if len(names) >= files.MIN_CACHED:
            self.file = cache_file("pictures", root)
            self.stamps = {name: [size, changed] for name, (size, changed, _) in zip(names, stamps, strict=True)}
            with suppress(OSError, ValueError, TypeError):
                found = json.loads(self.file.read_bytes())
                self.known = {
                    name: found[name]
                    for name, stamp in self.stamps.items()
                    if name in found and found[name][:2] == stamp and len(found[name]) == 4
                }

    @property
    def missing(self) -> list[str]:
        """The pictures whose headers are to be read."""
        return [name for name in self.names if name not in self.known]

    def complete(self, new: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """Return (H, W) of each picture that is known or among `new`, in the order of names; keep what is new."""
        recent = time.time_ns() - files.RECENT_NS
        kept = {name: [*self.stamps[name], *size] for name, size in new.items() if name in self.stamps}
        kept = {name: entry for name, entry in kept.items() if entry[1] < recent}
        if kept:
            write_cache(self.file, self.known | kept)
        sizes = {name: (entry[2], entry[3]) for name, entry in self.known.items()} | dict(new)
        return {name: sizes[name] for name in self.names if name in sizes}


def picture_size(path: Path | IO[bytes]) -> tuple[int, int]:
    """Read (H, W) of the decoded picture from the header alone. Raises PictureError."""
    with _opened(path) as image:
        return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)


def read_picture(path: Path | IO[bytes], size: int | None, color: Color, *, smooth: bool = True) -> Tensor:
    """Decode a picture, upright by its EXIF data, 16-bit grey as 8 bits, transparent parts white.

    Args:
        path: the file, or its content.
        size: length to which the shorter side is scaled before the centre is cropped to a square; None keeps the
            picture as it is.
        color: "rgb" or "grey".
        smooth: whether to scale by Lanczos, or to the nearest pixel.

    Returns:
        uint8 (C, H, W).

    Raises:
        PictureError: the file cannot be used.
    """
    with _opened(path) as image:
        turn = UPRIGHT.get(_orientation(image))
        picture = _eight_bits(image).convert("RGB" if color == "rgb" else "L")
        picture = picture if turn is None else picture.transpose(turn)
        if size is not None and picture.size != (size, size):
            method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
            picture = ImageOps.fit(picture, (size, size), method)
        pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if color == "grey" else pixels.permute(2, 0, 1).contiguous()


def _orientation(image: Image.Image) -> int:
    """Return EXIF orientation, 1 to 8; 5 and more swap the sides. Call it before the pixels are decoded."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # a PNG may store it behind the pixels, so that reading it would decode them
    return int(image.getexif().get(EXIF_ORIENTATION, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the same picture in a mode that `convert` can turn into RGB or L without loss."""
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
def without_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings about odd metadata and many pixels. Enter it in one thread at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(path: Path | IO[bytes]) -> Iterator[Image.Image]:
    """Open a picture and check its size before any pixel is decoded; turn every failure inside into PictureError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}")
            yield image
    except Image.DecompressionBombError as error:
        raise PictureError("too many pixels for a photograph") from error
    except UnidentifiedImageError as error:
        size = path.stat().st_size if isinstance(path, Path) else path.seek(0, os.SEEK_END)
        raise PictureError("empty file" if size == 0 else "not a PNG, JPEG, WEBP or BMP") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, MemoryError) as error:
        raise PictureError(f"damaged: {error or type(error).__name__}") from error
