"""Data: the source of clean examples.

A `Data` has a `spec` and two disjoint parts, "train" and "held-out". A part is a `Split`: an `InMemorySplit` if it fits
in memory (stored raw, images as uint8, and moved to the device as a whole), else one that worker processes read example
by example. `to_model_range` converts raw values to the range of the model, which is [-1, 1] for images. `as_examples`
does the same for examples that a caller passes, and checks them. `summarize` describes a data set in one line, and
warns of what is probably not meant.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError, plain
from .interface import attribute

if TYPE_CHECKING:
    from .denoiser import Denoiser

Part = Literal["train", "held-out"]
MAX_SAMPLED, MAX_STREAMED = 4096, 64
"""Examples whose values a summary reads: in memory, and of a part that is streamed."""
MAX_LISTED = 10
"""Classes, or reasons, that a summary lists."""
LEAST_STD, MOST_STD = 0.05, 5.0
"""Standard deviations of data that noise schedules are made for, which assume about 1."""
BOUND = 1.01
"""Largest |x| of bounded examples that a caller may pass: 1, and the rounding of bfloat16."""
Cond = Mapping[str, Tensor]
LABEL = "label"
"""The condition that `DataSpec.classes` states."""


@runtime_checkable
class MapDataset(Protocol):
    """A data set of another library: an index gives an example, such as of torch.utils.data or Hugging Face."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True)
class ConditionSpec:
    """A condition of one example, as the parts of a data set hold it: a tensor of `shape`.

    shape     shape of one example; empty for a class and for one number, (length,) for a text
    dtype     long: a class, 0 to classes - 1; float: numbers; uint8: values 0 to 255, such as pictures (C, H, W);
              text: UTF-8 bytes as uint8, padded with zeros, see `as_bytes`
    classes   number of classes of a condition of dtype long
    names     names of the classes 0, 1, ...; empty without names

    Raises ValueError if a class is not one number, or the fields contradict each other.
    """

    shape: tuple[int, ...] = ()
    dtype: Literal["long", "float", "uint8", "text"] = "float"
    classes: int | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.classes is not None and self.dtype == "float":
            object.__setattr__(self, "dtype", "long")
        if (self.classes is None) != (self.dtype != "long") or (self.shape and self.dtype == "long"):
            raise ValueError(f"a class is one number of dtype long with a number of classes, got {self}")
        if self.dtype == "text" and len(self.shape) != 1:
            raise ValueError(f"a text has the shape (length,) in bytes, got {self.shape}")
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"{len(self.names)} names are given for {self.classes} classes")


@dataclass(frozen=True)
class DataSpec:
    """Shape and range of one example, x: (channels, *size), and its conditions.

    channels      number of channels
    size          spatial size, such as (height, width); empty for vectors
    classes       number of classes of the condition `label`, None without labels
    bounded       whether |x| <= 1
    bins          number of values that a channel can take (256 for images), None for continuous data
    class_names   names of labels 0, 1, ... in reports
    conditions    every condition of an example by its name; `label` is added if there are `classes`, and a `label` that
                  is given here sets `classes` and `class_names`

    Raises ValueError if the name of a condition is not a Python identifier, or `label` is not a class.
    """

    channels: int
    size: tuple[int, ...] = ()
    classes: int | None = None
    bounded: bool = False
    bins: int | None = None
    class_names: tuple[str, ...] = ()
    conditions: Mapping[str, ConditionSpec] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        given = dict(self.conditions)
        if wrong := [name for name in given if not name.isidentifier() or iskeyword(name)]:
            raise ValueError(f"the name of a condition is an argument of a network, got {wrong[0]!r}")
        if self.classes is not None:
            given[LABEL] = ConditionSpec((), "long", self.classes, self.class_names)
        elif LABEL in given:
            if given[LABEL].classes is None:
                raise ValueError("the condition label is a class; choose another name for other conditions")
            object.__setattr__(self, "classes", given[LABEL].classes)
            object.__setattr__(self, "class_names", given[LABEL].names)
        object.__setattr__(self, "conditions", given)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example: (channels, *size)."""
        return (self.channels, *self.size)


class Split(ABC):
    """Base of the splits of a data set, train and held out. `split[i]` is (raw x: (C, *S), cond), the same at every
    call.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, Cond]: ...


@dataclass(frozen=True)
class InMemorySplit(Split):
    """A split in memory: raw x: (N, C, *S), and N rows per entry of `cond` (label: (N,) long)."""

    x: Tensor
    cond: Cond = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Cond]:
        return self.x[index], {name: value[index] for name, value in self.cond.items()}

    def rows(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the examples at `indices`: (B,) long, on the device of this part."""
        return self.x[indices], {name: value[indices] for name, value in self.cond.items()}

    def to(self, device: torch.device | str) -> InMemorySplit:
        """Return the same split on another device."""
        return InMemorySplit(self.x.to(device), {name: value.to(device) for name, value in self.cond.items()})


class Data(ABC):
    """Base of data sets. Implement `spec` and `split`; everything else has a default."""

    workers: int = 0

    @property
    @abstractmethod
    def spec(self) -> DataSpec:
        """Shape and range of one example after `to_model_range`."""

    @abstractmethod
    def split(self, part: Part) -> Split:
        """Return the split named `part`, an `InMemorySplit` if it is small. The two splits share no example."""

    def to_model_range(self, raw: Tensor) -> Tensor:
        """Convert raw values to the range of the model: integers k to 2 k / (bins - 1) - 1, other values to float32.

        `bins` is that of `spec`, or 256 if it has none: uint8 images become k / 127.5 - 1.
        """
        if raw.is_floating_point():
            return raw.float()
        return raw.float().div_(((self.spec.bins or 256) - 1) / 2).sub_(1.0)

    def to_storage(self, x: Tensor) -> Tensor:
        """Convert samples to raw values, the inverse of `to_model_range`: the nearest of `bins` values, or x itself.

        Values outside [-1, 1] become the first or the last bin.
        """
        bins = self.spec.bins
        if bins is None:
            return x
        k = x.float().add(1.0).mul_((bins - 1) / 2).round_().clamp_(0, bins - 1)
        return k.to(torch.uint8 if bins <= 256 else torch.int32)

    def truth(self) -> Denoiser | None:
        """Return the exact denoiser of the distribution if it is known in closed form, else None."""
        return None

    @cached_property
    def summary(self) -> str:
        """Numbers of examples and classes, shape and values in one line; warns once of probable mistakes."""
        return summarize(self, {"train": self.split("train"), "held-out": self.split("held-out")})

    def fingerprint(self) -> str:
        """Return a text that changes when the examples change; a resumed run compares it."""
        return f"{type(self).__name__}:{len(self.split('train'))}:{len(self.split('held-out'))}"


class Augmentation(ABC):
    """Base of random changes of training examples, which may pass their parameters to the network through `cond`."""

    @abstractmethod
    def __call__(self, x: Tensor, uniform: Tensor, cond: Cond) -> tuple[Tensor, Cond]:
        """Change a batch of examples.

        Args:
            x: Examples in the range of the model: (B, C, *S).
            uniform: Random numbers in [0, 1): (B, draws).
            cond: Conditions of the examples, one row each.

        Returns:
            The changed x, in the same shape, and the conditions. Entries added to the conditions reach the network by
            their names in training, and are left out in sampling.
        """

    @attribute
    def draws(self) -> int:
        """Number of uniform numbers per example; default 1."""
        return 1

    @attribute
    def moves(self) -> bool | None:
        """Whether pixels of x are moved, so that conditions with the same pixels, such as masks, change too:
        the augmentation is called for each of them with the same numbers. None, the default: not stated.
        """
        return None


class FiniteAugmentation(Augmentation):
    """Base of augmentations that give each example one of a few results and keep its conditions.

    The latents of all results can be kept on disk.
    """

    @attribute
    def variants(self) -> int:
        """Number of results of an example; default 2."""
        return 2

    @abstractmethod
    def variant(self, uniform: Tensor) -> Tensor:
        """Convert random numbers in [0, 1): (B, draws) to numbers of results, 0 to variants - 1: (B,) long."""

    @abstractmethod
    def changed(self, x: Tensor, variant: Tensor) -> Tensor:
        """Change each example of x: (B, C, *S) to its result number `variant`: (B,) long."""

    def __call__(self, x: Tensor, uniform: Tensor, cond: Cond) -> tuple[Tensor, Cond]:
        return self.changed(x, self.variant(uniform)), cond


def stack(split: Split, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return raw x: (B, C, *S) and cond of the examples at `indices`, from any kind of part."""
    if isinstance(split, InMemorySplit):
        return split.rows(torch.as_tensor(indices, device=split.x.device))
    rows = [split[i] for i in indices]
    cond = {name: torch.stack([torch.as_tensor(c[name]) for _, c in rows]) for name in (rows[0][1] if rows else {})}
    return torch.stack([x for x, _ in rows]), cond


def as_bytes(texts: Sequence[str], length: int) -> Tensor:
    """Return texts as a raw condition of dtype text: (N, length) uint8, UTF-8 padded with zeros.

    A text of more bytes is cut after its last whole character.
    """
    raw = torch.zeros(len(texts), length, dtype=torch.uint8)
    for row, text in zip(raw, texts, strict=True):
        kept = text.encode("utf-8", "replace")[:length].decode("utf-8", "ignore").encode()
        row[: len(kept)] = torch.frombuffer(bytearray(kept), dtype=torch.uint8) if kept else row[:0]
    return raw


def as_texts(raw: Tensor) -> list[str]:
    """Return the texts of a raw condition: (N, length) uint8, the inverse of `as_bytes`."""
    return [bytes(row).rstrip(b"\0").decode("utf-8", "replace") for row in raw.cpu().tolist()]


def as_examples(x: object, data: Data, *, count: int | None = None, argument: str = "x") -> Tensor:
    """Check examples that a caller passes, and convert them to the range of the model.

    Floats must be in the range of the model already, and become float32. Whole numbers are raw values, 0 to bins - 1,
    and are converted by `data.to_model_range`: 0 to 255 become k / 127.5 - 1. NumPy arrays are copied. Nothing else is
    converted: bool, complex and object arrays, lists, and pictures are refused.

    Args:
        x: A tensor or an array: (N, C, *S).
        data: The data set, whose `spec` defines shape and range.
        count: The required N; None allows any number.
        argument: The name of the argument, for messages.

    Returns:
        Examples: (N, C, *S) float32, on the device of x.

    Raises:
        UsageError: DK019, the type, the shape, the range or a value is wrong.
    """
    spec = data.spec
    wanted = f"({'N' if count is None else count}, {', '.join(map(str, spec.shape))})"

    def refuse(problem: str, fix: str) -> UsageError:
        return UsageError(f"{argument} must be examples of shape {wanted}: {problem}", code="DK019", fix=fix)

    if isinstance(x, np.ndarray) and x.dtype.kind in "iuf":
        with np.errstate(over="ignore"):
            x = torch.from_numpy(np.array(x, dtype=np.float32 if x.dtype.kind == "f" else np.int64, order="C"))
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.is_meta or x.is_quantized:
        got = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else f"{type(x).__name__}"
        raise refuse(f"got {got}", "pass a dense torch.Tensor or a NumPy array: floats, or raw values as uint8")
    if x.dtype == torch.bool or x.is_complex():
        raise refuse(f"got {x.dtype}", "pass floats in the range of the model")
    shape = tuple(x.shape)
    if shape == spec.shape:
        raise refuse(f"got one example, {shape}", f"add the axis of examples: {argument}[None]")
    if shape[1:] == (*spec.size, spec.channels) != spec.shape:
        fix = f"move the channels to axis 1: torch.as_tensor({argument}).movedim(-1, 1)"
        raise refuse(f"got {shape}, whose channels are last", fix)
    if shape[1:] != spec.shape or len(x) == 0 or count not in (None, len(x)):
        raise refuse(f"got shape {shape}", "crop, scale or repeat the examples")
    if not x.is_floating_point():
        low, high = (int(value) for value in x.long().aminmax())
        if spec.bins is None or low < 0 or high >= spec.bins:
            raw = "no raw values" if spec.bins is None else f"raw values 0 to {spec.bins - 1}"
            fix = f"pass floats in the range of the model, such as {argument}.astype('float32') of vectors"
            raise refuse(f"this data has {raw}, got whole numbers from {low} to {high}", fix)
        return data.to_model_range(x)
    x = x.float()
    if not bool(torch.isfinite(x).all()):
        raise refuse("it holds NaN or infinite values", "remove or repair them")
    least, most = (float(value) for value in x.aminmax())
    if spec.bounded and max(-least, most) > BOUND:
        fix = f"scale pixels of 0 to 255 by {argument} / 127.5 - 1, or limit the values: {argument}.clip(-1, 1)"
        raise refuse(f"the range of the model is [-1, 1], got [{least:.4g}, {most:.4g}]", fix)
    if spec.bounded and spec.size and 0 <= least < most <= 1:
        message = f"{argument} lies in [{least:.4g}, {most:.4g}], but black is -1: scale pixels of 0 to 1 by 2 x - 1"
        warnings.warn(plain(message), stacklevel=2)
    return x


def summarize(
    data: Data,
    parts: Mapping[Part, Split],
    left_out: Mapping[str, int] | None = None,
    ignored: Mapping[str, int] | None = None,
) -> str:
    """Describe a data set in one line, and warn of each thing that is probably not meant.

    Values and classes are those of the training part: of up to 4096 evenly spread examples (64 of a streamed part), and
    of all labels if the part has `labels` or is in memory.

    Args:
        data: The data set.
        parts: Both parts.
        left_out: Number of files for each reason that they are not used; a warning lists them.
        ignored: Number of files that are not used as expected, such as hidden ones.

    Returns:
        One line: examples, shape, values and their spread, classes with counts, what is left out.
    """
    spec, train = data.spec, parts["train"]
    count = len(train)
    most = MAX_SAMPLED if isinstance(train, InMemorySplit) else MAX_STREAMED
    raw, cond = stack(train, sorted({i * count // most for i in range(most)}))
    label = train.cond.get("label") if isinstance(train, InMemorySplit) else getattr(train, "labels", cond.get("label"))
    low, high = (float(value) for value in raw.aminmax())
    std = float(raw.double().std(correction=0))
    facts = [
        f"{count} examples to train on and {len(parts['held-out'])} held out",
        f"shape {spec.shape}",
        f"values {low:.4g} to {high:.4g}, std {std:.3g}" + (f", valid range 0 to {spec.bins - 1}" if spec.bins else ""),
    ]
    problems = list(_value_problems(spec, low, high, std))
    if spec.classes is not None and label is not None:
        counts = torch.bincount(label, minlength=spec.classes).tolist()
        names = spec.class_names or tuple(map(str, range(spec.classes)))
        each = f"{min(counts)} to {max(counts)} examples each"
        if spec.classes <= MAX_LISTED:
            each = ", ".join(f"{name}: {number}" for name, number in zip(names, counts))
        facts.append(f"{spec.classes} classes ({each})")
        if empty := [name for name, number in zip(names, counts) if not number]:
            problems.append(
                f"{len(empty)} of {spec.classes} classes have no training example: {_listed(empty)}; labels are "
                "numbered from 0 without gaps, such as numpy.unique(labels, return_inverse=True)[1]"
            )
    if left_out or ignored:
        facts.append(f"left out: {_counted({**(left_out or {}), **(ignored or {})})}")
    if left_out:
        problems.append(f"{sum(left_out.values())} files or folders are left out: {_counted(left_out)}")
    for problem in problems:
        warnings.warn(plain(f"data {type(data).__name__}: {problem}", keep=""), stacklevel=3)
    return plain("; ".join(facts), keep="")


def _value_problems(spec: DataSpec, low: float, high: float, std: float) -> Iterator[str]:
    """Yield what is unusual about values in [low, high], raw ones if `spec` has bins."""
    span = spec.bins - 1 if spec.bins else 2
    scaling = "scale them to [-1, 1], such as array / 127.5 - 1 of 0 to 255, and set data.bounded: true"
    if low == high:
        yield f"all values are {low:.4g}; check that the right array or folder is read"
    elif (spec.bins or spec.bounded) and high - low < span / 4:
        yield f"the values {low:.4g} to {high:.4g} use a small part of their range; scale them to fill it"
    elif not spec.bins and spec.size and 0 <= low < high <= 1:
        yield "the values are 0 to 1, but black is -1 in the range of the model; scale them: 2 * array - 1"
    elif not spec.bins and not spec.bounded and not LEAST_STD <= std <= MOST_STD:
        yield f"the values {low:.4g} to {high:.4g} (std {std:.3g}) are in no known range; {scaling}"


def _counted(reasons: Mapping[str, int]) -> str:
    return _listed([f"{number} {reason}" for reason, number in sorted(reasons.items(), key=lambda item: -item[1])])


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more
