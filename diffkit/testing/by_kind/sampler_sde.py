"""Laws of samplers of the reverse-time SDE with canonical names: their exact steps."""

from __future__ import annotations

import math

import torch

from diffkit.level import Level

from ...oracles.gaussian import GaussianOracle
from .. import families
from ..affine import Affine
from ..affine_probe import probe
from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject
from .sampler_known import beta, chain, matrices, walks

SONG = "Song et al. 2021 (arXiv:2011.13456)"


def score_step(oracle: GaussianOracle, t: Level, keep: float, gain: float, variance: float) -> Affine:
    """x -> keep x + gain score(x) + noise, score = -S_t^-1 (x - alpha m)."""
    a, s = float(t.alpha), float(t.sigma)
    eye = torch.eye(oracle.dimensions, dtype=torch.float64)
    inverse = torch.linalg.inv(a**2 * oracle.matrix + s**2 * eye)
    return Affine(keep * eye - gain * inverse, gain * a * inverse @ oracle.mean, variance * eye)


def turned_around(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
    """x -> (2 - a) x + b^2 score + b z, a = alpha_{t|s}, b = sigma_{t|s}; to clean data x0*."""
    if s.is_clean:
        return matrices(oracle, t, s, 0.0)
    return score_step(oracle, t, 2.0 - float(t.alpha) / float(s.alpha), beta(t, s), beta(t, s))


@law(
    "sampler",
    statement="x_s = (2 - a) x + b^2 score + b z, where x_t = a x_s + b z",
    source=f"{SONG}, eq. 46",
    tolerance=1e-10,
    identities="D5",
    only=("reverse-diffusion",),
)
def reverse_diffusion_law(subject: Subject, worst: Worst) -> None:
    """The forward step turned around to first order; the last step is Tweedie's x0, without noise."""
    for oracle in (families.gaussian(), GaussianOracle(torch.zeros(2, dtype=torch.float64), 1.0)):
        for title, levels in walks(subject):
            error = probe(oracle, subject.component, levels, 2).error(chain(oracle, levels, turned_around))
            worst.note(error, f"A, b, Q of {title}", "those of eq. 46")


@law(
    "sampler",
    statement="x_s = x - x int f + score int g^2 + z sqrt(int g^2), with the score whole, not halved",
    source=f"{SONG}, eq. 6",
    tolerance=1e-9,
    identities="D5 D15",
    only=("euler-maruyama",),
)
def euler_maruyama_law(subject: Subject, worst: Worst) -> None:
    """On variance-preserving levels int f = -int beta / 2 and int g^2 = int beta = 2 log(alpha_s / alpha_t)."""

    def step(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
        if s.is_clean:
            return matrices(oracle, t, s, 0.0)
        total = 2.0 * math.log(float(s.alpha) / float(t.alpha))
        return score_step(oracle, t, 1.0 + 0.5 * total, total, total)

    oracle = families.gaussian()
    for title, levels in walks(subject):
        error = probe(oracle, subject.component, levels, 2).error(chain(oracle, levels, step))
        worst.note(error, f"A, b, Q of {title}", "those of eq. 6")


@law(
    "sampler",
    statement="annealed Langevin steps are x + d score + sqrt(2 d) z at the new level, d = 2 (snr sigma)^2",
    source=f"{SONG}, Algorithms 4 and 5",
    tolerance=1e-9,
    identities="F6",
    only=("predictor-corrector",),
)
def langevin_law(subject: Subject, worst: Worst) -> None:
    """On N(m, S) their stationary variance is S_s / (1 - d / (2 S_s)): the factor of the noise is sqrt(2 d)."""
    sampler = subject.component
    if sampler.corrector != "annealed":
        raise Inapplicable("the size of its step depends on the noise")
    if sampler.predictor is None:
        raise Inapplicable("no predictor")

    def step(oracle: GaussianOracle, t: Level, s: Level) -> Affine:
        whole = turned_around(oracle, t, s)
        d = 2.0 * (sampler.ratio * float(s.sigma)) ** 2
        for _ in range(0 if s.is_clean else sampler.rounds):
            whole = whole.then(score_step(oracle, s, 1.0, d, 2.0 * d))
        return whole

    oracle = families.gaussian()
    for title, levels in walks(subject):
        error = probe(oracle, sampler, levels, 2).error(chain(oracle, levels, step))
        worst.note(error, f"A, b, Q of {title}", "a reverse-diffusion step, then Langevin steps")
