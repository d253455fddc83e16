"""Published image sets: MNIST and Fashion-MNIST (IDX files, gzipped or not) and CIFAR-10 (its binary version).

Nothing is downloaded. Each set lies in the folder `path`, by default $DIFFKIT_DATA/<name>, else data/<name>.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from diffkit import Data, DataError, DataSpec, FilePath, InMemorySplit, Part

from .files import archive_note, damaged, default_folder, fingerprint, require
from .splits import check_labels, in_memory

IDX_STEMS: dict[Part, str] = {"train": "train", "held-out": "t10k"}
IDX_UINT8 = 8
MAX_IDX_BYTES = 1 << 30
"""A header that declares more is damaged or hostile."""
CIFAR_FILES: dict[Part, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "held-out": ("test_batch.bin",),
}
CIFAR_RECORD_BYTES = 1 + 3 * 32 * 32
"""The label, then red, green and blue, each row by row."""
CIFAR_BINARY = "the binary version (cifar-10-binary.tar.gz; it unpacks to cifar-10-batches-bin)"


@dataclass(frozen=True)
class PublishedImages(Data):
    """Images of 256 values a channel with class labels, in the folder `path`.

    `path`: by default $DIFFKIT_DATA/<name>, else data/<name>. `labels: false` hides the classes, as papers on
    unconditional models do.
    """

    path: FilePath | None = None
    labels: bool = True
    folder: ClassVar[str]
    shape: ClassVar[tuple[int, int, int]]
    class_names: ClassVar[tuple[str, ...]]
    parts_needed: ClassVar[str]

    @property
    def spec(self) -> DataSpec:
        names = self.class_names if self.labels else ()
        return DataSpec(self.shape[0], self.shape[1:], len(names) or None, True, bins=256, class_names=names)

    def split(self, part: Part) -> InMemorySplit:
        return self._parts[part]

    @cached_property
    def _parts(self) -> Mapping[Part, InMemorySplit]:
        return {"train": self._read("train"), "held-out": self._read("held-out")}

    @abstractmethod
    def _read(self, part: Part) -> InMemorySplit:
        """Read one part from its files."""

    def _require_folder(self) -> Path:
        fix = f"put {self.parts_needed} there, or name the folder: data.path, or DIFFKIT_DATA for the folder above"
        return require(default_folder(self.path, self.folder), f"the folder of {self.folder}", fix, folder=True)


class IdxImages(PublishedImages):
    """28x28 grey images in four IDX files; the files named t10k are the held-out part.

    Raises DataError: DK301 a file is missing, DK302 damaged, DK305 wrong labels.
    """

    shape = (1, 28, 28)
    parts_needed = "the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-..., gzipped or not,"

    def fingerprint(self) -> str:
        files = [self._file(stem, name) for stem in IDX_STEMS.values() for name in ("images-idx3", "labels-idx1")]
        return fingerprint(self, files[0].parent, [file.name for file in files])

    @cached_property
    def _root(self) -> Path:
        root = self._require_folder()
        return root / "raw" if (root / "raw").is_dir() else root

    def _file(self, stem: str, name: str) -> Path:
        stems = (f"{stem}-{name}-ubyte", f"{stem}-{name.replace('-', '.')}-ubyte")
        for candidate in (self._root / f"{name}{suffix}" for name in stems for suffix in ("", ".gz")):
            if candidate.is_file():
                return candidate
        raise DataError(
            f"{self._root} lacks {stems[0]}.gz",
            code="DK301",
            fix=f"complete the four files of {self.folder}; {stems[0]} without .gz is read as well",
            notes=archive_note(self._root),
        )

    def _read(self, part: Part) -> InMemorySplit:
        path = self._file(IDX_STEMS[part], "images-idx3")
        images = read_idx(path, 3)
        if images.shape[1:] != self.shape[1:] or len(images) == 0:
            raise DataError(
                f"{path} holds {len(images)} images of size {images.shape[1:]}, expected {self.shape[1:]}",
                code="DK302",
                fix=f"check that it belongs to {self.folder}",
            )
        source = self._file(IDX_STEMS[part], "labels-idx1")
        labels = check_labels(read_idx(source, 1), len(images), len(self.class_names), source)
        return in_memory(torch.tensor(images)[:, None], labels if self.labels else None)


class MNIST(IdxImages):
    """Handwritten digits: x (1, 28, 28), 60,000 to train on and 10,000 (t10k) held out, 10 classes.

    Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition".
    """

    folder = "mnist"
    class_names = tuple("0123456789")


class FashionMNIST(IdxImages):
    """Articles of clothing: x (1, 28, 28), 60,000 to train on and 10,000 (t10k) held out, 10 classes.

    Source: Xiao, Rasul & Vollgraf 2017 (arXiv:1708.07747), table 2.
    """

    folder = "fashion-mnist"
    class_names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )


class CIFAR10(PublishedImages):
    """Photographs: x (3, 32, 32), 50,000 to train on and 10,000 (test_batch.bin) held out, 10 classes.

    Reads the six .bin files of the binary version. The "python version" is pickled and refused: data never becomes
    code. Raises DataError: DK301 a file is missing, DK302 damaged, DK303 pickled, DK305 wrong labels.
    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """

    folder = "cifar10"
    shape = (3, 32, 32)
    parts_needed = CIFAR_BINARY
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def fingerprint(self) -> str:
        return fingerprint(self, self._root, [name for names in CIFAR_FILES.values() for name in names])

    @cached_property
    def _root(self) -> Path:
        root = self._require_folder()
        root = root / "cifar-10-batches-bin" if (root / "cifar-10-batches-bin").is_dir() else root
        lacking = [name for names in CIFAR_FILES.values() for name in names if not (root / name).is_file()]
        if lacking and any((folder / "data_batch_1").is_file() for folder in (root, root / "cifar-10-batches-py")):
            raise DataError(
                f"{root} holds the python version of CIFAR-10, which is pickled: reading it would run code",
                code="DK303",
                fix=f"use {CIFAR_BINARY}",
            )
        if lacking:
            raise DataError(
                f"{root} lacks {', '.join(lacking)}", code="DK301", fix=f"use {CIFAR_BINARY}", notes=archive_note(root)
            )
        return root

    def _read(self, part: Part) -> InMemorySplit:
        paths = [self._root / name for name in CIFAR_FILES[part]]
        batches = [_cifar_records(path) for path in paths]
        labels = [
            check_labels(batch[:, 0], len(batch), len(self.class_names), path) for path, batch in zip(paths, batches)
        ]
        images = torch.from_numpy(np.concatenate([batch[:, 1:] for batch in batches]).reshape(-1, *self.shape))
        return in_memory(images, torch.cat(labels) if self.labels else None)


def _cifar_records(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return the records of one file: (N, 3073) uint8."""
    size = path.stat().st_size
    if size == 0 or size % CIFAR_RECORD_BYTES:
        raise damaged(
            path,
            f"its {size} bytes are not a whole number of records of {CIFAR_RECORD_BYTES} bytes",
            "get the archive again and compare its checksum; the published files hold 30,730,000 bytes each",
        )
    return np.fromfile(path, dtype=np.uint8).reshape(-1, CIFAR_RECORD_BYTES)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read the uint8 array of an IDX file, gzipped if its name ends in .gz. Raises DataError DK302 if damaged.

    The format: two zero bytes, a type, the number of dimensions, the sizes (big endian), then the values.
    Source: the description at the end of the page that published MNIST (LeCun, Cortes & Burges).
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return _read_idx(file, dimensions, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged_idx(path, f"the gzip stream is damaged ({error})") from error


def _read_idx(file: BufferedIOBase, dimensions: int, path: Path) -> NDArray[np.uint8]:
    head = file.read(4 + 4 * dimensions)
    if len(head) < 4 + 4 * dimensions:
        raise _damaged_idx(path, f"the file ends within its header of {4 + 4 * dimensions} bytes")
    zero, data_type, found, *sizes = struct.unpack(f">HBB{dimensions}I", head)
    if zero != 0 or data_type != IDX_UINT8 or found != dimensions:
        expected_start = bytes((0, 0, IDX_UINT8, dimensions)).hex()
        raise _damaged_idx(path, f"the file starts with {head[:4].hex()}, expected {expected_start}")
    expected = math.prod(sizes)
    if expected > MAX_IDX_BYTES:
        raise _damaged_idx(path, f"the header declares {expected} bytes, at most {MAX_IDX_BYTES} are read")
    body = file.read(expected + 1)
    if len(body) != expected:
        held = "more" if len(body) > expected else len(body)
        raise _damaged_idx(path, f"the header declares {expected} bytes, the file holds {held}")
    return np.frombuffer(body, dtype=np.uint8).reshape(sizes)


def _damaged_idx(path: Path, reason: str) -> DataError:
    return damaged(path, reason, "get the file again and compare its checksum")
