"""Data sets of other libraries, such as torch and Hugging Face, as data: given as an object in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffkit import Cond, ConditionSpec, DataError, DataSpec, InMemorySplit, MapDataset, Part, Split
from diffkit.errors import DiffkitError

from .columns import Column, as_captions, as_classes, as_numbers
from .files import FileData, Resident, fits_in_memory
from .splits import HeldOut, check_held_out, divide

X, PARTS = "", ("train", "held-out")
"""The name of x among the tensors of an example, and the parts of a mapping of data sets."""
MAX_CHANNELS = 4
"""Length up to which the last axis of an array of three axes holds the channels."""


@dataclass(frozen=True)
class DatasetData(FileData):
    """Examples of an object with a length and an index, which a call in Python gives: `run(recipe, dataset=...)`.

    An example is x alone; a tuple of x and a class, whose further places are named "1", "2", ...; or a mapping. x and
    conditions may be tensors (C, *S), arrays (C, *S) or (H, W, C), or pictures of Pillow: uint8 is scaled to [-1, 1],
    floats are used unchanged. Whole numbers are classes, floats and lists of floats numbers, texts captions, or classes
    under the name `label`.

    dataset      the object, or a mapping of `train` and `held-out` to one each, so that `held_out` has no effect
    x            key of x in examples that are mappings
    conditions   names of conditions and their keys; by default {label: 1} for tuples with a class, else none
    bounded      whether floats lie in [-1, 1]

    Every example is read once before training, to check it and for the fingerprint, and must be the same at each call,
    so that a resumed run has the same bits: random changes belong into `data.augment`. `resident: auto` then keeps up
    to 1 GiB in memory; otherwise examples are read again, in `workers` processes, which receive the object by fork, or
    by pickle on systems without fork.

    Raises DataError: DK311 no object is given, DK304 too few examples, DK313 an example that does not fit.
    """

    dataset: MapDataset | None = field(default=None, repr=False)
    x: str = "image"
    conditions: dict[str, str] = field(default_factory=dict)
    bounded: bool = False
    held_out: HeldOut = 0.1
    resident: Resident = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        check_held_out(self.held_out)
        if self.dataset is None:
            message = "the examples of data `dataset` are an object of Python, which is not given"
            raise DataError(
                message, code="DK311", fix='call diffkit.run("recipe.yaml", dataset=...), or use other data'
            )
        if isinstance(self.dataset, Mapping) and set(self.dataset) != set(PARTS):
            fix = 'pass {"train": ..., "held-out": ...}, or one data set'
            raise DataError(f"the parts are {', '.join(map(str, self.dataset))}", code="DK313", fix=fix)

    @staticmethod
    def law_example(folder: object) -> DatasetData:
        """Return an instance on which the laws are tested: pictures, classes and captions."""
        pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
        rows = [{"image": one, "kind": i % 3, "words": f"number {i}"} for i, one in enumerate(pixels)]
        return DatasetData(rows, conditions={"label": "kind", "text": "words"})

    @property
    def spec(self) -> DataSpec:
        first, columns = self._examined.first, self._columns
        x = first[X]
        discrete = x.dtype == torch.uint8
        described = {name: column.spec for name, column in columns.items()}
        for name, value in first.items():
            if name != X:
                described[name] = ConditionSpec(tuple(value.shape), "uint8" if value.dtype == torch.uint8 else "float")
        bins = 256 if discrete else None
        return DataSpec(
            x.shape[0], tuple(x.shape[1:]), bounded=self.bounded or discrete, bins=bins, conditions=described
        )

    def fingerprint(self) -> str:
        return f"{type(self).__name__}:{self.held_out}:{self._examined.digest}"

    @cached_property
    def _reader(self) -> Reader:
        given = self.dataset
        assert given is not None
        sets = tuple(given[part] for part in PARTS) if isinstance(given, Mapping) else (given,)
        return Reader(sets, self.x, self.conditions)

    @cached_property
    def _examined(self) -> Examined:
        return examine(self._reader, self.resident)

    @cached_property
    def _columns(self) -> dict[str, Column]:
        """The conditions other than tensors."""
        found: dict[str, Column] = {}
        for name, values in self._examined.values.items():
            named = self._reader.class_names(name)
            if named is not None:
                found[name] = Column(ConditionSpec((), "long", len(named), named), torch.tensor(values))
            elif isinstance(values[0], str) and name != "label":
                found[name] = as_captions(values, misfit, name)
            elif isinstance(values[0], float):
                found[name] = as_numbers([values], misfit, [name])
            else:
                found[name] = as_classes(values, misfit, name)
        return found

    @cached_property
    def _parts(self) -> Mapping[Part, Split]:
        read, kept = self._reader, self._examined.kept
        if len(read.sets) == 2:
            first = len(read.sets[0])
            rows = list(range(first)), list(range(first, len(read)))
        else:
            rows = divide([str(i) for i in range(len(read))], self.held_out)

        def part(at: list[int]) -> Split:
            cond = {name: column.rows[at] for name, column in self._columns.items()}
            if not kept:
                return DatasetRows(read, at, cond)
            stacked = {name: torch.stack([kept[row][name] for row in at]) for name in kept[0]}
            return InMemorySplit(stacked.pop(X), cond | stacked)

        return {"train": part(rows[0]), "held-out": part(rows[1])}


@dataclass(frozen=True)
class Reader:
    """Reads examples: the tensors, x among them, and the other conditions, as they are."""

    sets: tuple[MapDataset, ...]
    x: str
    conditions: Mapping[str, str]

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def __call__(self, index: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the other conditions of an example. Raises DataError DK313."""
        first = len(self.sets[0])
        try:
            given = self.sets[0][index] if index < first else self.sets[1][index - first]
        except DiffkitError:
            raise
        except Exception as error:
            problem = f"the data set raises {type(error).__name__}: {error}"
            raise misfit(index, problem, "correct the data set, or leave the example out") from error
        x, conditions = self.x, self.conditions
        if not isinstance(given, Mapping):
            places = given if isinstance(given, tuple) else (given,)
            given, x = {str(place): _plain(value) for place, value in enumerate(places)}, "0"
            if not conditions and isinstance(given.get("1"), int):
                conditions = {"label": "1"}
        wanted = {X: x, **conditions}
        if absent := [key for key in wanted.values() if key not in given]:
            keys = ", ".join(map(str, given))
            problem = f"the example has no {absent[0]!r}; it has: {keys}"
            raise misfit(index, problem, "name the keys: data.x and data.conditions")
        tensors: dict[str, Tensor] = {}
        others: dict[str, Any] = {}
        for name, key in wanted.items():
            value = _as_tensor(given[key])
            if value is None:
                others[name] = _plain(given[key])
                continue
            if value.dtype not in (torch.uint8, torch.float32) or not bool(torch.isfinite(value).all()):
                told = f"of {value.dtype}" if value.dtype not in (torch.uint8, torch.float32) else "not finite"
                raise misfit(index, f"{key} is {told}", "give uint8, 0 to 255, or finite floats")
            tensors[name] = value
        if X not in tensors or tensors[X].ndim == 0:
            raise misfit(index, f"{x} is {type(given[x]).__name__}", "give a tensor, an array or a picture of Pillow")
        return tensors, others

    def class_names(self, name: str) -> tuple[str, ...] | None:
        """Return the names of the classes of a column of Hugging Face, None for any other."""
        features = getattr(self.sets[0], "features", None)
        feature = features.get(self.conditions.get(name)) if isinstance(features, Mapping) else None
        names = getattr(feature, "names", None)
        return None if names is None else tuple(map(str, names))


@dataclass(frozen=True)
class Examined:
    """What one pass over all examples finds: the first, all others if they are kept, the conditions other than
    tensors, and a hash of everything.
    """

    first: Mapping[str, Tensor]
    kept: Sequence[Mapping[str, Tensor]]
    values: Mapping[str, list[Any]]
    digest: str


def examine(read: Reader, resident: Resident) -> Examined:
    """Read every example, and the first and the last once more.

    Args:
        read: The reader.
        resident: Whether examples are kept in memory, as the option.

    Returns:
        What was found.

    Raises:
        DataError: DK304, there are too few; DK313, an example differs in shape or type, or changes.
    """
    if len(read) < 2:
        raise DataError(f"the data set has {len(read)} examples", code="DK304", fix="give at least two examples")
    first, plain = read(0)
    keep = fits_in_memory(resident, len(read) * sum(value.nbytes for value in first.values()))
    kept, digest, last = list[Mapping[str, Tensor]](), sha256(), first
    values: dict[str, list[Any]] = {name: [] for name in plain}
    for index in range(len(read)):
        last, others = read(index)
        if last.keys() != first.keys():
            raise misfit(index, "its conditions are of other kinds than those of the first", "give all of one type")
        for name, value in last.items():
            if (value.shape, value.dtype) != (first[name].shape, first[name].dtype):
                got, wanted = (f"{tuple(one.shape)} of {one.dtype}" for one in (value, first[name]))
                raise misfit(
                    index, f"{name or 'x'} is {got}, in the first example {wanted}", "scale all to one size and type"
                )
            digest.update(value.numpy().tobytes())
        for name, other in others.items():
            values[name].append(other)
        if keep:
            kept.append(last)
    for index, before in ((0, first), (len(read) - 1, last)):
        if any(not torch.equal(value, before[name]) for name, value in read(index)[0].items()):
            fix = "leave random changes out of the data set, and use data.augment"
            raise misfit(index, "two calls return different examples", fix)
    digest.update(repr(values).encode())
    return Examined(first, kept, values, f"{len(read)}:{digest.hexdigest()[:32]}")


@dataclass(frozen=True)
class DatasetRows(Split):
    """The examples at `rows`, each read from the data set when it is needed."""

    read: Reader
    rows: Sequence[int]
    cond: Cond

    @property
    def labels(self) -> Tensor | None:
        """The class of each example, None without classes."""
        return self.cond.get("label")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        tensors, _ = self.read(self.rows[index])
        return tensors.pop(X), {name: value[index] for name, value in self.cond.items()} | tensors


def misfit(index: int, problem: str, fix: str) -> DataError:
    """Build the error for an example.

    Args:
        index: Number of the example.
        problem: The fault.
        fix: The fix in the message.

    Returns:
        A DataError DK313.
    """
    return DataError(f"example {index} of the data set: {problem}", code="DK313", fix=fix)


def _plain(value: Any) -> Any:
    """Return a number in an array or a tensor without axes as a plain number; any other value as it is."""
    return value.item() if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0 else value


def _as_tensor(value: object) -> Tensor | None:
    """Return a tensor (C, *S), an array, a picture or a list of numbers as a tensor; None for anything else."""
    if isinstance(value, Image.Image):
        pixels = np.array(value if value.mode in ("L", "RGB") else value.convert("RGB"))
        value = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
    elif isinstance(value, list) and value and all(isinstance(one, int | float) for one in value):
        value = np.asarray(value, dtype=np.float32)
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[-1] <= MAX_CHANNELS < value.shape[0]:
        value = np.moveaxis(value, -1, 0)
    if isinstance(value, np.ndarray) and value.dtype.kind in "uif":
        value = torch.from_numpy(np.array(value, order="C"))
    if not isinstance(value, Tensor) or value.ndim == 0:
        return None
    value = value.detach().cpu().contiguous()
    return value.float() if value.is_floating_point() else value
