"""Laws of data."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from diffkit.data import Data, Part, Split, stack
from diffkit.level import Level

from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject

PARTS: tuple[Part, ...] = get_args(Part)


def _some(split: Split, count: int = 32) -> list[int]:
    n = len(split)
    return sorted({(i * (n - 1)) // max(1, min(count, n) - 1) for i in range(min(count, n))})


def _key(x: Tensor) -> bytes:
    return x.contiguous().numpy().tobytes()


@law(
    "data",
    statement="both parts hold examples of the shape that spec tells, with labels in 0..classes - 1",
    source="the definition of Data",
    tolerance=0.0,
)
def spec(subject: Subject, worst: Worst) -> None:
    """What a network is built for."""
    data: Data = subject.component
    told = data.spec
    for part in PARTS:
        split = data.split(part)
        worst.holds(len(split) > 0, f"{part} has {len(split)} examples", "some")
        raw, cond = stack(split, _some(split))
        x = data.to_model_range(raw)
        worst.holds(tuple(x.shape[1:]) == told.shape, f"{part}: shape {tuple(x.shape[1:])}", f"{told.shape}")
        worst.holds(x.dtype == torch.float32, f"{part}: decoded to {x.dtype}", "torch.float32")
        worst.holds(bool(torch.isfinite(x).all()), f"{part}: values that are not finite", "finite")
        label = cond.get("label")
        worst.holds((label is None) == (told.classes is None), f"{part}: labels {label is not None}", str(told.classes))
        if label is not None and told.classes is not None:
            fine = label.dtype == torch.long and int(label.min()) >= 0 and int(label.max()) < told.classes
            worst.holds(fine, f"{part}: labels {int(label.min())}..{int(label.max())}", f"long, 0..{told.classes - 1}")
    if told.class_names:
        worst.holds(len(told.class_names) == told.classes, f"{len(told.class_names)} names", f"{told.classes}")


@law(
    "data",
    statement="bounded data lie in [-1, 1], and use the range",
    source="design.md, data",
    tolerance=1e-6,
)
def bounds(subject: Subject, worst: Worst) -> None:
    """Clipping and the discretised decoder rely on it."""
    data: Data = subject.component
    if not data.spec.bounded:
        raise Inapplicable("not bounded")
    split = data.split("train")
    x = data.to_model_range(stack(split, _some(split, 256))[0])
    worst.note(
        max(0.0, float(x.abs().max()) - 1.0), f"values from {float(x.min()):.4g} to {float(x.max()):.4g}", "<= 1"
    )
    wide = float(x.max()) - float(x.min())
    worst.holds(wide > 0.5, f"values span {wide:.3g}", "a good part of [-1, 1]")


@law(
    "data",
    statement="encode(decode(raw)) = raw",
    source="design.md, data; tests/pains.md, 14",
    tolerance=0.0,
)
def stored(subject: Subject, worst: Worst) -> None:
    """What is written of a sample is what would be read: k and 2 k / (bins - 1) - 1 are inverse to each other."""
    data: Data = subject.component
    if data.spec.bins is None:
        raise Inapplicable("no bins")
    split = data.split("train")
    raw = stack(split, _some(split))[0]
    worst.holds(not raw.is_floating_point(), f"raw is {raw.dtype}", "integers")
    worst.compare(data.to_storage(data.to_model_range(raw)).double(), raw.double(), "raw, decoded and encoded")
    near = data.to_model_range(raw) + 0.8 / (data.spec.bins - 1) * (2.0 * torch.rand(raw.shape) - 1.0)
    worst.compare(data.to_storage(near).double(), raw.double(), "values within half a step of those stored")
    grid = torch.arange(data.spec.bins).reshape(1, -1)
    x = data.to_model_range(grid.to(raw.dtype))
    worst.compare(x[0, [0, -1]], torch.tensor([-1.0, 1.0]), "first and last value")


@law(
    "data",
    statement="an index gives the same example each time, whatever was read before",
    source="design.md, data",
    tolerance=0.0,
)
def repeatable(subject: Subject, worst: Worst) -> None:
    """Resumed runs see the same order of the same examples."""
    data: Data = subject.component
    for part in PARTS:
        split = data.split(part)
        which = _some(split, 8)
        first = [split[i][0].clone() for i in which]
        for i, want in reversed(list(zip(which, first, strict=True))):
            worst.compare(data.split(part)[i][0], want, f"{part}[{i}] again")
    worst.holds(data.fingerprint() == data.fingerprint(), "fingerprint changes by itself", "the same text")


@law(
    "data",
    statement="the parts share no example",
    source="the definition of Data",
    tolerance=0.0,
)
def disjoint(subject: Subject, worst: Worst) -> None:
    """Held-out means never seen; equal examples in both would hide memorisation. At most 4096 of each are compared."""
    data: Data = subject.component
    seen = []
    for part in PARTS:
        split = data.split(part)
        seen.append({_key(split[i][0]) for i in range(min(len(split), 4096))})
    common = len(seen[0] & seen[1])
    worst.note(float(common), f"{common} examples in both parts", "0")


@law(
    "data",
    statement="the exact denoiser fits the examples: E[(x0 - x0*) f(x)] = 0 for f = 1 and x, within 5 standard errors",
    source="identities D3, E3",
    tolerance=5.0,
    identities="D3 E3",
)
def truth(subject: Subject, worst: Worst) -> None:
    """x0* is a conditional mean, so its error is uncorrelated with every function of x."""
    data: Data = subject.component
    denoise = data.truth()
    if denoise is None:
        raise Inapplicable("its law is not known in closed form")
    split = data.split("train")
    raw, cond = stack(split, range(min(len(split), 4096)))
    x0 = data.to_model_range(raw).double().flatten(1)
    eps = subject.normal(*x0.shape, stream="eps")
    for angle in (0.05, 0.4, 1.2):
        level = Level(math.cos(angle), math.sin(angle))
        x = level.add_noise(x0, eps)
        for labelled in (False, True) if "label" in cond else (False,):
            estimate = denoise(x, level, label=cond["label"]) if labelled else denoise(x, level)
            error = x0 - estimate.x0
            for name, test in (("1", torch.ones_like(x)), ("x", x)):
                product = error * test
                deviation = product.std(0).clamp(min=1e-12) / len(x0) ** 0.5
                ratio = float((product.mean(0).abs() / deviation).max())
                worst.note(ratio, f"E[(x0 - x0*) {name}] at angle {angle}, in standard errors", "0")
