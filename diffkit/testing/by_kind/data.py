"""Laws of data and of augmentations."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from diffkit.data import Augmentation, Cond, Data, Part, Split, stack
from diffkit.level import Level

from ..case import Case
from ..law_registry import LawResult, NotApplicable, law

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
def spec(case: Case, result: LawResult) -> None:
    """What a network is built for."""
    data: Data = case.component
    told = data.spec
    for part in PARTS:
        split = data.split(part)
        result.holds(len(split) > 0, f"{part} has {len(split)} examples", "some")
        raw, cond = stack(split, _some(split))
        x = data.to_model_range(raw)
        result.holds(tuple(x.shape[1:]) == told.shape, f"{part}: shape {tuple(x.shape[1:])}", f"{told.shape}")
        result.holds(x.dtype == torch.float32, f"{part}: decoded to {x.dtype}", "torch.float32")
        result.holds(bool(torch.isfinite(x).all()), f"{part}: values that are not finite", "finite")
        label = cond.get("label")
        result.holds(
            (label is None) == (told.classes is None), f"{part}: labels {label is not None}", str(told.classes)
        )
        if label is not None and told.classes is not None:
            fine = label.dtype == torch.long and int(label.min()) >= 0 and int(label.max()) < told.classes
            result.holds(fine, f"{part}: labels {int(label.min())}..{int(label.max())}", f"long, 0..{told.classes - 1}")
    if told.class_names:
        result.holds(len(told.class_names) == told.classes, f"{len(told.class_names)} names", f"{told.classes}")


@law(
    "data",
    statement="bounded data lie in [-1, 1], and use the range",
    source="design.md, data",
    tolerance=1e-6,
)
def bounds(case: Case, result: LawResult) -> None:
    """Clipping and the discretised decoder rely on it."""
    data: Data = case.component
    if not data.spec.bounded:
        raise NotApplicable("not bounded")
    split = data.split("train")
    x = data.to_model_range(stack(split, _some(split, 256))[0])
    result.note(
        max(0.0, float(x.abs().max()) - 1.0), f"values from {float(x.min()):.4g} to {float(x.max()):.4g}", "<= 1"
    )
    wide = float(x.max()) - float(x.min())
    result.holds(wide > 0.5, f"values span {wide:.3g}", "a good part of [-1, 1]")


@law(
    "data",
    statement="encode(decode(raw)) = raw",
    source="design.md, data; tests/pains.md, 14",
    tolerance=0.0,
)
def stored(case: Case, result: LawResult) -> None:
    """What is written of a sample is what would be read: k and 2 k / (bins - 1) - 1 are inverse to each other."""
    data: Data = case.component
    if data.spec.bins is None:
        raise NotApplicable("no bins")
    split = data.split("train")
    raw = stack(split, _some(split))[0]
    result.holds(not raw.is_floating_point(), f"raw is {raw.dtype}", "integers")
    result.compare(data.to_storage(data.to_model_range(raw)).double(), raw.double(), "raw, decoded and encoded")
    near = data.to_model_range(raw) + 0.8 / (data.spec.bins - 1) * (2.0 * torch.rand(raw.shape) - 1.0)
    result.compare(data.to_storage(near).double(), raw.double(), "values within half a step of those stored")
    grid = torch.arange(data.spec.bins).reshape(1, -1)
    x = data.to_model_range(grid.to(raw.dtype))
    result.compare(x[0, [0, -1]], torch.tensor([-1.0, 1.0]), "first and last value")


@law(
    "data",
    statement="an index gives the same example each time, whatever was read before",
    source="design.md, data",
    tolerance=0.0,
)
def repeatable(case: Case, result: LawResult) -> None:
    """Resumed runs see the same order of the same examples."""
    data: Data = case.component
    for part in PARTS:
        split = data.split(part)
        which = _some(split, 8)
        first = [split[i][0].clone() for i in which]
        for i, want in reversed(list(zip(which, first, strict=True))):
            result.compare(data.split(part)[i][0], want, f"{part}[{i}] again")
    result.holds(data.fingerprint() == data.fingerprint(), "fingerprint changes by itself", "the same text")


@law(
    "data",
    statement="the parts share no example",
    source="the definition of Data",
    tolerance=0.0,
)
def disjoint(case: Case, result: LawResult) -> None:
    """Held-out means never seen; equal examples in both would hide memorisation. At most 4096 of each are compared."""
    data: Data = case.component
    seen = []
    for part in PARTS:
        split = data.split(part)
        seen.append({_key(split[i][0]) for i in range(min(len(split), 4096))})
    common = len(seen[0] & seen[1])
    result.note(float(common), f"{common} examples in both parts", "0")


@law(
    "data",
    statement="the exact denoiser fits the examples: E[(x0 - x0*) f(x)] = 0 for f = 1 and x, within 5 standard errors",
    source="identities D3, E3",
    tolerance=5.0,
    identities="D3 E3",
)
def truth(case: Case, result: LawResult) -> None:
    """x0* is a conditional mean, so its error is uncorrelated with every function of x."""
    data: Data = case.component
    denoise = data.truth()
    if denoise is None:
        raise NotApplicable("its law is not known in closed form")
    split = data.split("train")
    raw, cond = stack(split, range(min(len(split), 4096)))
    x0 = data.to_model_range(raw).double().flatten(1)
    eps = case.normal(*x0.shape, stream="eps")
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
                result.note(ratio, f"E[(x0 - x0*) {name}] at angle {angle}, in standard errors", "0")


def augmentation_inputs(case: Case) -> tuple[Tensor, Tensor, Cond]:
    """Return eight images, their uniform numbers, and their labels."""
    augmentation: Augmentation = case.component
    x = case.normal(8, 3, 6, 6, dtype=torch.float32).clamp(-1, 1)
    uniform = torch.rand(8, augmentation.draws, generator=case.generator("u"))
    return x, uniform, {"label": torch.arange(8)}


@law(
    "augmentation",
    statement="examples keep their shape and type, and stay in [-1, 1]; what came with them stays",
    source="the definition of Augmentation",
    tolerance=0.0,
)
def form(case: Case, result: LawResult) -> None:
    """Entries may be added to cond, none may be lost."""
    x, uniform, cond = augmentation_inputs(case)
    kept = x.clone()
    y, told = case.component(x, uniform, cond)
    result.holds(
        y.shape == x.shape and y.dtype == x.dtype, f"{tuple(y.shape)} {y.dtype}", f"{tuple(x.shape)} {x.dtype}"
    )
    result.holds(float(y.abs().max()) <= 1.0 + 1e-6, f"|x| up to {float(y.abs().max()):.4g}", "<= 1")
    result.holds(
        "label" in told and torch.equal(told["label"], cond["label"]), f"cond holds {sorted(told)}", "the label"
    )
    result.holds(all(len(v) == 8 for v in told.values()), "entries of cond of another length", "one row an example")
    result.compare(x, kept, "x afterwards")


@law(
    "augmentation",
    statement="what happens to an example is a function of its own uniform numbers, and they matter",
    source="design.md, randomness",
    tolerance=1e-5,
)
def counted(case: Case, result: LawResult) -> None:
    """The same twice, and alone; torch's generator is not touched."""
    x, uniform, cond = augmentation_inputs(case)
    before = torch.random.get_rng_state()
    y, _ = case.component(x, uniform, cond)
    result.compare(case.component(x, uniform, cond)[0], y, "again")
    result.holds(torch.equal(before, torch.random.get_rng_state()), "torch's generator moved", "untouched")
    for i in (0, 5):
        alone = case.component(x[i : i + 1], uniform[i : i + 1], {"label": cond["label"][i : i + 1]})[0]
        result.compare(alone[0], y[i], f"example {i} alone")
    outcomes = [case.component(x[:1], torch.full((1, uniform.shape[1]), u), {})[0] for u in (0.01, 0.3, 0.6, 0.99)]
    differ = any(not torch.equal(a, outcomes[0]) for a in outcomes[1:])
    result.holds(differ, "all uniform numbers do the same", "some change")
