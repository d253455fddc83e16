"""Laws of data and of augmentations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from diffkit.data import Augmentation, Cond, ConditionSpec, Data, Part, Split, stack
from diffkit.level import Level

from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..reference import SOURCE, STATEMENT, evaluate, for_variants, reference_of

PARTS: tuple[Part, ...] = get_args(Part)
TYPES = {"long": torch.long, "uint8": torch.uint8, "text": torch.uint8}
"""Types of the raw conditions that are whole numbers, by the dtype in their `ConditionSpec`."""


def _some(split: Split, count: int = 32) -> list[int]:
    n = len(split)
    return sorted({(i * (n - 1)) // max(1, min(count, n) - 1) for i in range(min(count, n))})


def _key(x: Tensor) -> bytes:
    return x.contiguous().numpy().tobytes()


@law(
    "data",
    statement="both parts contain examples of the shape in spec, with labels 0..classes - 1",
    source="the definition of Data",
    tolerance=0.0,
)
def spec(case: Case, result: LawResult) -> None:
    """Networks are built for the shape in spec."""
    data: Data = case.component
    wanted = data.spec
    for part in PARTS:
        split = data.split(part)
        result.holds(len(split) > 0, f"{part} has {len(split)} examples", "some")
        raw, cond = stack(split, _some(split))
        x = data.to_model_range(raw)
        result.holds(tuple(x.shape[1:]) == wanted.shape, f"{part}: shape {tuple(x.shape[1:])}", f"{wanted.shape}")
        result.holds(x.dtype == torch.float32, f"{part}: {x.dtype}", "torch.float32")
        result.holds(bool(torch.isfinite(x).all()), f"{part}: values that are not finite", "finite")
        label = cond.get("label")
        result.holds(
            (label is None) == (wanted.classes is None), f"{part}: labels {label is not None}", str(wanted.classes)
        )
        if label is not None and wanted.classes is not None:
            fine = label.dtype == torch.long and int(label.min()) >= 0 and int(label.max()) < wanted.classes
            result.holds(
                fine, f"{part}: labels {int(label.min())}..{int(label.max())}", f"long, 0..{wanted.classes - 1}"
            )
    if wanted.class_names:
        result.holds(len(wanted.class_names) == wanted.classes, f"{len(wanted.class_names)} names", f"{wanted.classes}")


@law(
    "data",
    statement="examples have each condition of spec, in its shape and type",
    source="the definition of ConditionSpec",
    tolerance=0.0,
)
def conditions(case: Case, result: LawResult) -> None:
    """Conditioners and networks are built for what spec describes."""
    wanted: Mapping[str, ConditionSpec] = case.component.spec.conditions
    for part in PARTS:
        split = case.component.split(part)
        cond = stack(split, _some(split))[1]
        told = f"{part}: conditions {', '.join(sorted(cond)) or 'none'}"
        result.holds(cond.keys() >= wanted.keys(), told, ", ".join(sorted(wanted)) or "none")
        for name in cond.keys() & wanted.keys():
            shape, dtype = tuple(cond[name].shape[1:]), cond[name].dtype
            result.holds(shape == wanted[name].shape, f"{part}: {name} {shape}", f"{wanted[name].shape}")
            fits = dtype.is_floating_point if wanted[name].dtype == "float" else dtype == TYPES[wanted[name].dtype]
            result.holds(fits, f"{part}: {name} of {dtype}", wanted[name].dtype)


@law(
    "data",
    statement="bounded data lie in [-1, 1] and cover a large part of it",
    source="design.md, data",
    tolerance=1e-6,
)
def bounds(case: Case, result: LawResult) -> None:
    """Clipping and the discretised decoder assume this range."""
    data: Data = case.component
    if not data.spec.bounded:
        raise NotApplicable("the data is not bounded")
    split = data.split("train")
    x = data.to_model_range(stack(split, _some(split, 256))[0])
    result.note(
        max(0.0, float(x.abs().max()) - 1.0), f"values from {float(x.min()):.4g} to {float(x.max()):.4g}", "<= 1"
    )
    wide = float(x.max()) - float(x.min())
    result.holds(wide > 0.5, f"values span {wide:.3g}", "a good part of [-1, 1]")


@law(
    "data",
    statement="to_storage(to_model_range(raw)) = raw",
    source="design.md, data; tests/pains.md, 14",
    tolerance=0.0,
)
def stored(case: Case, result: LawResult) -> None:
    """A written sample is read back as the same numbers: k -> 2 k / (bins - 1) - 1 is inverted exactly."""
    data: Data = case.component
    if data.spec.bins is None:
        raise NotApplicable("the data has no bins")
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
    statement="an index returns the same example each time, in any order of reading",
    source="design.md, data",
    tolerance=0.0,
)
def repeatable(case: Case, result: LawResult) -> None:
    """Resumed runs read the same examples in the same order."""
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
    statement="the two parts have no example in common",
    source="the definition of Data",
    tolerance=0.0,
)
def disjoint(case: Case, result: LawResult) -> None:
    """A copy of a training example in the held-out part would hide memorisation. At most 4096 of each are compared."""
    data: Data = case.component
    seen = []
    for part in PARTS:
        split = data.split(part)
        seen.append({_key(split[i][0]) for i in range(min(len(split), 4096))})
    common = len(seen[0] & seen[1])
    result.note(float(common), f"{common} examples in both parts", "0")


@law(
    "data",
    statement="truth() is exact: E[(x0 - x0*) f(x)] = 0 for f = 1 and f = x, within 5 standard errors",
    source="identities D3, E3",
    tolerance=5.0,
    identities="D3 E3",
)
def truth(case: Case, result: LawResult) -> None:
    """x0* is a conditional mean, so its error is uncorrelated with every function of x."""
    data: Data = case.component
    denoise = data.truth()
    if denoise is None:
        raise NotApplicable("the data has no exact denoiser")
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


@law("augmentation", name="reference", statement=STATEMENT, source=SOURCE, tolerance=1e-5)
@for_variants
def reference(case: Case, result: LawResult) -> None:
    """A function of one example x: (C, *S) and its numbers uniform: (draws,), that returns the changed example."""
    stated = reference_of(case)
    x, uniform, cond = augmentation_inputs(case)
    y, _ = case.component(x, uniform, cond)
    for i in range(len(x)):
        want = torch.as_tensor(evaluate(stated, {"x": x[i].clone(), "uniform": uniform[i]}))
        result.compare(y[i], want, f"example {i}, uniform = {uniform[i].tolist()}")


@law(
    "augmentation",
    statement="the augmented examples have the shape and dtype of x and lie in [-1, 1]; no entry of cond is lost",
    source="the definition of Augmentation",
    tolerance=0.0,
)
def form(case: Case, result: LawResult) -> None:
    """An augmentation may add entries to cond."""
    x, uniform, cond = augmentation_inputs(case)
    kept = x.clone()
    y, conditions = case.component(x, uniform, cond)
    result.holds(
        y.shape == x.shape and y.dtype == x.dtype, f"{tuple(y.shape)} {y.dtype}", f"{tuple(x.shape)} {x.dtype}"
    )
    result.holds(float(y.abs().max()) <= 1.0 + 1e-6, f"|x| up to {float(y.abs().max()):.4g}", "<= 1")
    result.holds(
        "label" in conditions and torch.equal(conditions["label"], cond["label"]),
        f"cond holds {sorted(conditions)}",
        "the label",
    )
    result.holds(
        all(len(v) == 8 for v in conditions.values()), "entries of cond of another length", "one row an example"
    )
    result.compare(x, kept, "x afterwards")


@law(
    "augmentation",
    statement="the result for an example depends on its own uniform numbers, and on nothing else",
    source="design.md, randomness",
    tolerance=1e-5,
)
def counted(case: Case, result: LawResult) -> None:
    """An example is augmented in the same way twice and in a batch of one; torch's generator is not used."""
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
    result.holds(differ, "the result is the same for all uniform numbers", "different results")
