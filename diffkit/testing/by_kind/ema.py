"""Laws of averages of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diffkit.network import Network
from diffkit.train.config import EmaConfig
from diffkit.train.ema import Average, effective_weights

from ..case import Case
from ..law_registry import LawResult, law

BATCH = 8
FORMS = (
    EmaConfig(decay=0.9),
    EmaConfig(decay=0.999, warmup=True),
    EmaConfig(half_life=40.0),
    EmaConfig(half_life=4000.0, warmup=True),
    EmaConfig(power=6.94),
)


class _Weights(Network):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights.clone())

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return x


def _path(case: Case, updates: int) -> list[torch.Tensor]:
    return [case.normal(3, stream=f"w{n}") for n in range(updates + 1)]


@law(
    "ema",
    statement="the weights of an average are >= 0 and sum to 1",
    source="identities H1",
    tolerance=1e-12,
    identities="H1",
)
def convex(case: Case, result: LawResult) -> None:
    """The average has no bias towards zero that would need a correction."""
    for ema in FORMS:
        for updates in (0, 1, 2, 30):
            w = effective_weights(ema, updates, BATCH)
            result.compare(float(w.sum()), 1.0, f"sum after {updates} updates of {ema}")
            result.holds(bool((w >= 0).all()), f"a negative weight in {ema}", ">= 0")


@law(
    "ema",
    statement="the average in training is the sum of the past weights with these factors",
    source="identities H1",
    tolerance=1e-9,
    identities="H1",
)
def recursion(case: Case, result: LawResult) -> None:
    """The recursion new = beta_n old + (1 - beta_n) weights is written as a sum over all updates."""
    for ema in FORMS:
        path = _path(case, 25)
        w = effective_weights(ema, 25, BATCH)
        want = sum((c * x for c, x in zip(w, path, strict=True)), torch.zeros(3, dtype=torch.float64))
        network = _Weights(path[0])
        average = Average(ema, network, BATCH)
        for n, weights in enumerate(path[1:], start=1):
            network.weights.data.copy_(weights)
            average.update(n)
        result.compare(average.network.state_dict()["weights"], want, f"{ema}")


@law(
    "ema",
    statement="decay b: b^n theta_0 + (1 - b) sum b^(n - k) theta_k",
    source="identities H1",
    tolerance=1e-12,
    identities="H1",
)
def constant_decay(case: Case, result: LawResult) -> None:
    """The weights of a constant decay are a geometric series."""
    b, n = 0.9, 12
    want = torch.tensor([b**n, *((1.0 - b) * b ** (n - k) for k in range(1, n + 1))], dtype=torch.float64)
    result.compare(effective_weights(EmaConfig(decay=b), n), want, f"weights of decay {b}")


@law(
    "ema",
    statement="warm-up min(b, (1 + n) / (10 + n)): the initial weights have the factor (n + 1)! 10! / (n + 10)!",
    source="identities H1; Ho et al. 2020, code",
    tolerance=1e-12,
    identities="H1",
)
def warm_up(case: Case, result: LawResult) -> None:
    """The product of the factors telescopes."""
    n = 15
    want = math.factorial(n + 1) * math.factorial(10) / math.factorial(n + 10)
    got = float(effective_weights(EmaConfig(decay=0.9999, warmup=True), n)[0])
    result.note(abs(got / want - 1.0), f"share of the initial weights after {n} updates: {got:.9g}", f"{want:.9g}")


@law(
    "ema",
    statement="half_life H: the weights of H images ago have half the factor of the present ones, for every batch size",
    source="Karras et al. 2022 (arXiv:2206.00364), training loop",
    tolerance=1e-9,
    identities="H1",
)
def half_life(case: Case, result: LawResult) -> None:
    """The factor of one update is beta = 2^(-batch / H)."""
    for batch in (1, 8, 32):
        w = effective_weights(EmaConfig(half_life=64.0), 200, batch)
        result.compare(float(w[-1 - 64 // batch] / w[-1]), 0.5, f"batch {batch}: 64 images ago / now")


@law(
    "ema",
    statement="power g: w_k = (k / n)^(g + 1) - ((k - 1) / n)^(g + 1)",
    source="Karras et al. 2024 (arXiv:2312.02696), sec. 3.1",
    tolerance=1e-12,
    identities="H2",
)
def power(case: Case, result: LawResult) -> None:
    """The weights are integrals of the profile over one update each; the first update drops the initial weights."""
    for g in (1.0, 6.94, 16.97):
        n = 20
        want = [0.0, *((k / n) ** (g + 1) - ((k - 1) / n) ** (g + 1) for k in range(1, n + 1))]
        result.compare(
            effective_weights(EmaConfig(power=g), n), torch.tensor(want, dtype=torch.float64), f"weights of g = {g}"
        )
