"""Images: a folder of pictures, decoded into memory or one by one as training continues."""

from __future__ import annotations

import math
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from diffkit import Cond, DataError, DataSpec, FilePath, Part, Split

from .files import FileData, Resident, archive_note, fingerprint, fits_in_memory, locate, require
from .splits import HeldOut, check_held_out, divide, in_memory

Color = Literal["rgb", "grey"]
Errors = Literal["error", "skip"]
Result = TypeVar("Result")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SIDECARS = (".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".db", ".ini", ".log")
"""Files that usually lie beside pictures: leaving them out causes no warning."""
MAX_PIXELS = 64_000_000
"""Pixels of one picture; a small file may declare any number."""
MAX_LISTED = 200
"""Unusable files that an error names."""
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


@dataclass(frozen=True)
class Images(FileData):
    """PNG, JPEG, WEBP and BMP files below `path`, sub-folders included: x (3, H, W), or (1, H, W) with `color: grey`.

    Links to files and folders are followed, each folder once. A warning counts the files that are left out, by suffix.

    `size` scales the shorter side to this length (Lanczos) and crops the centre to a square; without `size` all
    pictures must have equal sizes. `labels: true` uses the names of the sub-folders as classes. A hash of its name
    decides whether a picture is held out (`held_out`: a number, or a fraction). All files are examined before
    training, and every unusable one is reported; `errors: skip` replaces up to `max_skipped` of them, each by the next
    usable picture, so that other pictures keep their positions; if a part has no usable picture, the usable ones are
    divided instead. `resident: auto` keeps up to 1 GiB of decoded pictures
    in memory; above, `workers` processes decode them during training. Raises DataError: DK301 missing, DK304 too few,
    DK305 labels, DK306 unequal sizes, DK309 unusable files.
    """

    path: FilePath
    size: Annotated[int, Field(ge=1)] | None = None
    color: Color = "rgb"
    labels: bool = False
    held_out: HeldOut = 0.1
    errors: Errors = "error"
    max_skipped: Annotated[int, Field(ge=1)] = 100
    resident: Resident = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        check_held_out(self.held_out)
        if self.errors == "error" and self.max_skipped != type(self).max_skipped:
            raise ValueError("max_skipped has no effect without errors: skip")

    @cached_property
    def spec(self) -> DataSpec:
        names = self._classes
        size = self._headers[0] if self.size is None else (self.size, self.size)
        channels = 3 if self.color == "rgb" else 1
        return DataSpec(channels, size, len(names) or None, bounded=True, bins=256, class_names=names)

    def fingerprint(self) -> str:
        return fingerprint(self, self._root, self._names)

    @cached_property
    def _root(self) -> Path:
        return require(locate(self.path), "the folder of images", "name a folder: data.path", folder=True)

    @cached_property
    def _found(self) -> Found:
        found = find_pictures(self._root)
        if not found.names:
            others = Counter(found.left_out) + Counter(found.ignored)
            raise DataError(
                f"no image below {self._root}",
                code="DK304",
                choices=f"files that end in {', '.join(SUFFIXES)}",
                fix="name the folder that holds them: data.path",
                notes=[*archive_note(self._root), f"found: {dict(others.most_common(5)) or 'nothing'}"],
            )
        return found

    @property
    def _names(self) -> list[str]:
        return self._found.names

    @property
    def _unused(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        ignored = {**self._found.ignored, **({"unusable": len(self._reasons)} if self._reasons else {})}
        if not self.labels:
            return self._found.left_out, ignored
        empty = {f"folder {name!r} without a picture": 1 for name in self._found.folders if name not in self._classes}
        return {**self._found.left_out, **empty}, ignored

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Names of the sub-folders, sorted; empty without labels."""
        if not self.labels:
            return ()
        loose = [name for name in self._names if "/" not in name]
        if loose:
            raise DataError(
                f"{len(loose)} images lie in {self._root} itself, so that they have no class: {loose[0]}",
                code="DK305",
                fix="put each class into a folder of its own, or set data.labels: false",
            )
        return tuple(sorted({name.split("/")[0] for name in self._names}))

    @cached_property
    def _headers(self) -> tuple[tuple[int, int], dict[str, str]]:
        """The common (H, W), and the reason for each file that is unusable according to its header."""
        sizes, reasons = self._each(self._names, lambda name: picture_size(self._root / name))
        counts = Counter(sizes.values())
        if not counts:
            raise unusable(reasons, len(self._names))
        if len(counts) > 1 and self.size is None:
            first = {size: name for name, size in reversed(sizes.items())}
            raise DataError(
                f"the images below {self._root} have {len(counts)} different sizes",
                code="DK306",
                fix="set data.size: each image is scaled and cropped to this size",
                notes=[f"{first[size]}: {size[1]}x{size[0]} (width x height)" for size in list(counts)[:5]],
            )
        return counts.most_common(1)[0][0], reasons

    def _each(self, names: Sequence[str], read: Callable[[str], Result]) -> tuple[dict[str, Result], dict[str, str]]:
        """Call `read` for every name in threads; return the results and the errors by name."""

        def attempt(name: str) -> Result | PictureError:
            try:
                return read(name)
            except PictureError as error:
                return error

        results: dict[str, Result] = {}
        reasons: dict[str, str] = {}
        with without_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, result in zip(names, pool.map(attempt, names)):
                if isinstance(result, PictureError):
                    reasons[name] = str(result)
                else:
                    results[name] = result
        return results, reasons

    @cached_property
    def _pictures(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The decoded pictures if they fit in memory, and the reason for each unusable file that is known so far."""
        if fits_in_memory(self.resident, len(self._names) * math.prod(self.spec.shape)):
            return self._each(self._names, self._read)
        return {}, dict(self._headers[1])

    def _read(self, name: str) -> Tensor:
        return read_picture(self._root / name, self.size, self.color)

    @property
    def _reasons(self) -> dict[str, str]:
        return self._pictures[1]

    @cached_property
    def _parts(self) -> Mapping[Part, Split]:
        pictures, reasons = self._pictures
        rows = divide(self._names, self.held_out)
        if not pictures and self.errors == "skip":  # only decoding shows whether a small part has a usable picture
            few = [self._names[row] for part in rows if len(part) <= self.max_skipped for row in part]
            reasons.update(self._each([name for name in few if name not in reasons], self._read)[1])
        self._report(reasons)
        good = [name not in reasons for name in self._names]
        if not all(any(good[row] for row in part) for part in rows):
            usable = [row for row, fine in enumerate(good) if fine]
            first, second = divide([self._names[row] for row in usable], self.held_out)
            rows = [usable[place] for place in first], [usable[place] for place in second]
        train, held_out = (self._part(replace_unusable(good, part), pictures) for part in rows)
        return {"train": train, "held-out": held_out}

    def _report(self, reasons: Mapping[str, str]) -> None:
        """Warn of unusable files, or raise if they are not to be skipped."""
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
            return in_memory(torch.stack([pictures[name] for name in names]), labels)
        shape = self.spec.shape
        return PictureFiles(self._root, names, labels, self.size, self.color, shape, self.errors, self.max_skipped)


@dataclass(frozen=True)
class PictureFiles(Split):
    """The pictures `names` below `root`, each decoded when it is read; a worker process receives only their names."""

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
                with without_warnings():
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


def unusable(reasons: Mapping[str, str], count: int, *, limit: int | None = None) -> DataError:
    """Build the error that lists unusable files.

    Args:
        reasons: file name -> reason.
        count: the number of all files.
        limit: `max_skipped`, if files are skipped and there are too many.

    Returns:
        A DataError DK309, for the caller to raise.
    """
    notes = [f"{name}: {reason}" for name, reason in list(reasons.items())[:MAX_LISTED]]
    if len(reasons) > MAX_LISTED:
        notes.append(f"and {len(reasons) - MAX_LISTED} more")
    allowed = "" if limit is None else f", more than data.max_skipped = {limit}"
    return DataError(
        f"{len(reasons)} of {count} images cannot be used{allowed}",
        code="DK309",
        fix="repair or remove them" + (", or set data.errors: skip" if limit is None else ""),
        notes=notes,
    )


def replace_unusable(good: Sequence[bool], rows: Sequence[int]) -> list[int]:
    """Replace each unusable index in `rows` by the next usable one of them, cyclically; `good` tests an index.

    So an unusable file does not change the position of other examples. At least one index must be usable.
    """
    sources = list(rows)
    following = next(row for row in rows if good[row])
    for place in reversed(range(len(rows))):
        if good[rows[place]]:
            following = rows[place]
        sources[place] = following
    return sources


class PictureError(Exception):
    """Raised for a file that cannot be used; the message is the reason."""


@dataclass
class Found:
    """The files below a folder: pictures by relative path with slashes, sorted, and the numbers of all other files.

    `folders` are the names of the sub-folders; `left_out` and `ignored` count unexpected and expected files by reason.
    """

    names: list[str] = field(default_factory=list)
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
            suffix = Path(entry.name).suffix.lower()
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
                (found.ignored if suffix in SIDECARS else found.left_out)[suffix or "without a suffix"] += 1
    found.names.sort()
    return found


def picture_size(path: Path) -> tuple[int, int]:
    """Read (H, W) of the decoded picture from the header alone. Raises PictureError."""
    with _opened(path) as image:
        return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)


def read_picture(path: Path, size: int | None, color: Color) -> Tensor:
    """Decode a picture, upright by its EXIF data, 16-bit grey as 8 bits, transparent parts white.

    Args:
        path: the file.
        size: length to which the shorter side is scaled (Lanczos) before the centre is cropped to a square; None
            keeps the picture as it is.
        color: "rgb" or "grey".

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
            picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
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
    """Suppress Pillow's warnings about odd metadata and many pixels; to be entered in one thread only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture and check its size before any pixel is decoded; turn every failure inside into PictureError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}")
            yield image
    except Image.DecompressionBombError as error:
        raise PictureError("too many pixels for a photograph") from error
    except UnidentifiedImageError as error:
        raise PictureError("empty file" if path.stat().st_size == 0 else "not a PNG, JPEG, WEBP or BMP") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, MemoryError) as error:
        raise PictureError(f"damaged: {error or type(error).__name__}") from error
