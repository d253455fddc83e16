"""Laws of augmentations."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.data import Augmentation, Cond

from ..law_registry import Worst, law
from ..subject import Subject


def _case(subject: Subject) -> tuple[Tensor, Tensor, Cond]:
    augmentation: Augmentation = subject.component
    x = subject.normal(8, 3, 6, 6, dtype=torch.float32).clamp(-1, 1)
    uniform = torch.rand(8, augmentation.draws, generator=subject.generator("u"))
    return x, uniform, {"label": torch.arange(8)}


@law(
    "augmentation",
    statement="examples keep their shape and type, and stay in [-1, 1]; what came with them stays",
    source="the definition of Augmentation",
    tolerance=0.0,
)
def form(subject: Subject, worst: Worst) -> None:
    """Entries may be added to cond, none may be lost."""
    x, uniform, cond = _case(subject)
    kept = x.clone()
    y, told = subject.component(x, uniform, cond)
    worst.holds(y.shape == x.shape and y.dtype == x.dtype, f"{tuple(y.shape)} {y.dtype}", f"{tuple(x.shape)} {x.dtype}")
    worst.holds(float(y.abs().max()) <= 1.0 + 1e-6, f"|x| up to {float(y.abs().max()):.4g}", "<= 1")
    worst.holds(
        "label" in told and torch.equal(told["label"], cond["label"]), f"cond holds {sorted(told)}", "the label"
    )
    worst.holds(all(len(v) == 8 for v in told.values()), "entries of cond of another length", "one row an example")
    worst.compare(x, kept, "x afterwards")


@law(
    "augmentation",
    statement="what happens to an example is a function of its own uniform numbers, and they matter",
    source="design.md, randomness",
    tolerance=1e-5,
)
def counted(subject: Subject, worst: Worst) -> None:
    """The same twice, and alone; torch's generator is not touched."""
    x, uniform, cond = _case(subject)
    before = torch.random.get_rng_state()
    y, _ = subject.component(x, uniform, cond)
    worst.compare(subject.component(x, uniform, cond)[0], y, "again")
    worst.holds(torch.equal(before, torch.random.get_rng_state()), "torch's generator moved", "untouched")
    for i in (0, 5):
        alone = subject.component(x[i : i + 1], uniform[i : i + 1], {"label": cond["label"][i : i + 1]})[0]
        worst.compare(alone[0], y[i], f"example {i} alone")
    results = [subject.component(x[:1], torch.full((1, uniform.shape[1]), u), {})[0] for u in (0.01, 0.3, 0.6, 0.99)]
    differ = any(not torch.equal(a, results[0]) for a in results[1:])
    worst.holds(differ, "all uniform numbers do the same", "some change")


@law(
    "augmentation",
    statement="an example is mirrored along its last axis where its number is below the probability, else unchanged",
    source="Ho et al. 2020 (arXiv:2006.11239), app. B",
    tolerance=0.0,
    only=("flip",),
)
def flip_formula(subject: Subject, worst: Worst) -> None:
    """Left and right change places; up and down do not."""
    x, _, cond = _case(subject)
    p = subject.component.probability
    for u in (0.0, p - 1e-3, p + 1e-3, 0.999):
        if not 0.0 <= u < 1.0:
            continue
        y, _ = subject.component(x, torch.full((8, 1), u), cond)
        worst.compare(y, torch.flip(x, (3,)) if u < p else x, f"u = {u:.4g}, probability {p}")
