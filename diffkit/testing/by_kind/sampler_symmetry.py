"""Laws of samplers that say what may not matter: the scale of x, rotations, shifts."""

from __future__ import annotations

from typing import Any

import torch

from diffkit.level import Level
from diffkit.sampler import Sampler, sample

from ...oracles.gaussian import GaussianOracle
from .. import families
from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject
from .sampler import Recorded, equipped, walk


@law(
    "sampler",
    statement="on rescaled levels x_i c_i with the same noises the sample is the same, whatever the scales c_i",
    source="Karras et al. 2022 (arXiv:2206.00364), app. B; identities A8",
    tolerance=1e-9,
    identities="A8",
)
def rescaling(subject: Subject, worst: Worst) -> None:
    """(x0, eps) does not depend on the scale of x, so VP, VE and flow are one curve, walked alike."""
    sampler: Sampler[Any] = subject.component
    if sampler.discrete_only:
        raise Inapplicable("it works on discrete schedules only")
    denoise = equipped(sampler, families.mixture())
    x = subject.normal(3, 2)
    for clean in (True, False):
        levels = families.path(7, clean=clean)
        want = sample(denoise, sampler, levels, x, noise=Recorded()) / levels[-1].alpha
        families_of = {
            "exploding": [1.0 / float(level.alpha) for level in levels],
            "flow": [1.0 / (float(level.alpha) + float(level.sigma)) for level in levels],
            "random scales": [1.0 + 0.5 * ((7 * i) % 5) for i in range(len(levels))],
        }
        for title, scales in families_of.items():
            there = [Level(float(v.alpha) * c, float(v.sigma) * c) for v, c in zip(levels, scales, strict=True)]
            got = sample(denoise, sampler, there, x * scales[0], noise=Recorded()) / there[-1].alpha
            worst.compare(got, want, f"{title}, {'to clean data' if clean else 'to a noisy level'}")


@law(
    "sampler",
    statement="rotating the data, the start and the noises rotates the sample",
    source="identities F8",
    tolerance=1e-9,
    identities="F8",
)
def rotation(subject: Subject, worst: Worst) -> None:
    """No direction of space is special."""
    sampler: Sampler[Any] = subject.component
    turn = torch.linalg.qr(torch.tensor([[0.6, -1.0], [1.3, 0.4]], dtype=torch.float64)).Q
    x, levels = subject.normal(3, 2), walk(subject, 7)
    want = sample(equipped(sampler, families.mixture()), sampler, levels, x, noise=Recorded()) @ turn.T
    turned = equipped(sampler, families.mixture(turn=turn))
    got = sample(turned, sampler, levels, x @ turn.T, noise=Recorded(change=lambda z: z @ turn.T))
    worst.compare(got, want, "a turned sample")


@law(
    "sampler",
    statement="shifting the data by c, and the start by alpha c, shifts the sample by c",
    source="identities F8",
    tolerance=1e-9,
    identities="F8",
)
def shift(subject: Subject, worst: Worst) -> None:
    """x = alpha x0 + sigma eps: eps does not move, so every combination that keeps the marginals moves x by alpha c."""
    sampler: Sampler[Any] = subject.component
    c = torch.tensor([2.0, -1.0], dtype=torch.float64)
    x = subject.normal(3, 2)
    for clean in (True, False):
        levels = walk(subject, 7, clean=clean)
        want = (
            sample(equipped(sampler, families.mixture()), sampler, levels, x, noise=Recorded()) + levels[-1].alpha * c
        )
        moved = equipped(sampler, families.mixture(shift=c))
        got = sample(moved, sampler, levels, x + levels[0].alpha * c, noise=Recorded())
        worst.compare(got, want, f"a shifted sample, {'on clean data' if clean else 'at a noisy level'}")


@law(
    "sampler",
    statement="dimensions that are independent and alike are treated alike: reordering them reorders the sample",
    source="identities F8",
    tolerance=1e-9,
)
def reordering(subject: Subject, worst: Worst) -> None:
    """Samples of images are not mixed across pixels by the sampler."""
    sampler: Sampler[Any] = subject.component
    oracle = equipped(sampler, GaussianOracle(0.2, 0.4))
    order = torch.randperm(12, generator=subject.generator("order"))
    x, levels = subject.normal(2, 12), walk(subject, 5)
    want = sample(oracle, sampler, levels, x, noise=Recorded())[:, order]
    got = sample(oracle, sampler, levels, x[:, order], noise=Recorded(change=lambda z: z[:, order]))
    worst.compare(got, want, "reordered dimensions")
    flat = sample(oracle, sampler, levels, x, noise=Recorded())
    deep = sample(oracle, sampler, levels, x.reshape(2, 3, 2, 2), noise=Recorded(change=lambda z: z))
    worst.holds(deep.shape == (2, 3, 2, 2), f"images became {tuple(deep.shape)}", "the same shape")
    if not sampler.stochastic:
        worst.compare(deep.reshape(2, 12), flat, "images of the same numbers")
