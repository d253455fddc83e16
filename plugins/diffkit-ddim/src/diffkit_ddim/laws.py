"""Laws of the DDIM sampler."""

from __future__ import annotations

from diffkit.level import Level
from diffkit.oracles import GaussianOracle
from diffkit.testing import Affine, Case, LawResult, law
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
