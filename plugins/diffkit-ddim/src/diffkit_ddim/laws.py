"""Laws of the samplers DDIM and PLMS."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from diffkit.level import Level
from diffkit.oracles import GaussianOracle
from diffkit.sampler import sample
from diffkit.testing import Affine, Case, LawResult, fixtures, law
from diffkit.testing.affine import compare_steps, first_order, posterior_variance

SONG = "Song et al. 2021 (arXiv:2010.02502)"


@law(
    "sampler",
    statement="A, b and Q are those of DDIM: rho = eta sigma_s sqrt(1 - exp(-2h)), eta on the standard deviation",
    source=f"{SONG}, eq. 12, 16",
    tolerance=1e-10,
    identities="B3 D5 F3 F9",
    only=("ddim",),
)
def ddim_law(case: Case, result: LawResult) -> None:
    """eta = 0 is the probability-flow step, eta = 1 the ancestral one."""
    eta = float(case.component.eta)

    def step(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
        return first_order(oracle, t, s, eta * posterior_variance(t, s) ** 0.5)

    compare_steps(case, result, step)


@law(
    "sampler",
    statement="the eps of a step is the mean of the cubic through the last four over it, as if all steps were equal",
    source="Liu et al. 2022 (arXiv:2202.09778), eq. 12; Rombach et al. 2022 (arXiv:2112.10752), code",
    tolerance=1e-10,
    only=("plms",),
)
def plms_law(case: Case, result: LawResult) -> None:
    """The first step uses the mean of the eps at both of its ends; every step moves x as DDIM does, with constant
    eps.
    """
    oracle, x = fixtures.mixture(), torch.tensor([[0.3, -1.2], [1.5, 0.4]], dtype=torch.float64)
    for clean in (True, False):
        levels = fixtures.path(7, clean=clean)
        z, known = x, []
        for index, (t, s) in enumerate(pairwise(levels)):
            known.append(oracle(z, t).eps)
            eps = mean_of_step(known[-4:])
            if index == 0:
                eps = (eps + oracle(moved(z, t, s, eps), s).eps) / 2.0
            z = moved(z, t, s, eps)
        result.compare(sample(oracle, case.component, levels, x), z, f"7 steps, to clean data: {clean}")


def mean_of_step(values: list[Tensor]) -> Tensor:
    """Return the mean over [0, 1] of the polynomial that has `values`, the newest last, at ..., -2, -1, 0."""
    nodes = torch.arange(1.0 - len(values), 1.0, dtype=torch.float64)
    powers = torch.arange(len(values), dtype=torch.float64)
    weights = torch.linalg.solve(nodes[None] ** powers[:, None], 1.0 / (powers + 1.0))
    return torch.einsum("i,i...->...", weights, torch.stack(values))


def moved(x: Tensor, t: Level, s: Level, eps: Tensor) -> Tensor:
    """Return x at another level, for constant noise.

    Args:
        x: the state: (B, D).
        t: the level of x.
        s: the other level.
        eps: the noise of x.

    Returns:
        The state at s.
    """
    return s.add_noise((x - t.sigma * eps) / t.alpha, eps)
