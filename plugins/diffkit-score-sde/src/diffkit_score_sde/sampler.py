"""Two discretisations of the reverse-time SDE, between any two levels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffkit import Denoiser, Level, Noise, Sampler, scalar, transition

EXPLICIT = "the drift is that at the noisier level, in the scale of x, as in the paper: exact only if alpha is constant"
EXEMPT = {"rescaling": EXPLICIT, "shift": EXPLICIT, "point-mass-law": EXPLICIT}


@dataclass(frozen=True)
class EulerMaruyama(Sampler[None]):
    """Euler-Maruyama steps of the reverse SDE: x_s = x - x int f + score int g^2 + z sqrt(int g^2), from s to t.

    int f = log(alpha_t / alpha_s). int g^2 is exact on VP, 2 log(alpha_s / alpha_t), and on VE, sigma_t^2 - sigma_s^2;
    see `noise_between`. The step to clean data returns Tweedie's x0, without noise.
    Source: Song et al. 2021 (arXiv:2011.13456), eq. 6 and app. G, "noise removal". Differs: exact integrals instead of
    the paper's f dt and g^2 dt, so that a step can join any two levels.
    """

    order = 1
    stochastic = True
    reaches_noise = False
    law_exemptions = EXEMPT

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        estimate = denoise(x, t)
        if s.is_clean:
            return estimate.step_to(s), None
        drift = float(scalar.log(s.alpha) - scalar.log(t.alpha))
        variance = noise_between(t, s)
        return (1.0 + drift) * x - variance / float(t.sigma) * estimate.eps + variance**0.5 * noise(x), None


@dataclass(frozen=True)
class ReverseDiffusion(Sampler[None]):
    """Reverse diffusion: x_s = (2 - a) x + b^2 score + b z, for the forward step x_t = a x_s + b z.

    Here a = alpha_{t|s} and b = sigma_{t|s}.

    The step to clean data returns Tweedie's x0, without noise. Source: Song et al. 2021 (arXiv:2011.13456), eq. 46, and
    Algorithms 2 and 3 (predictor).
    """

    order = 1
    stochastic = True
    law_exemptions = EXEMPT

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        estimate = denoise(x, t)
        if s.is_clean:
            return estimate.step_to(s), None
        a, b = float(transition.decay(t, s)), float(transition.spread(t, s))
        return (2.0 - a) * x - b * b / float(t.sigma) * estimate.eps + b * noise(x), None


def noise_between(t: Level, s: Level) -> float:
    """Compute int g^2 from s to t on the curve with log r linear in log(alpha / r), r = hypot(alpha, sigma).

    The integral is 2 L log((alpha_s / r_s) / (alpha_t / r_t)) with L the logarithmic mean of r_t^2 and r_s^2. VP
    (r = 1) and VE (r = 1 / cos) are such curves; on others the error is of third order in the step. g^2 = -2 sigma^2
    d half_logsnr / dt, identity A6 of docs/theory/identities.md. Infinite at alpha_t = 0.
    """
    r_t, r_s = float(t.scale), float(s.scale)
    turn = float(scalar.log(s.alpha / r_s) - scalar.log(t.alpha / r_t))
    growth = 2.0 * float(scalar.log(r_t / r_s))
    mean = r_s * r_s * (float(scalar.expm1(growth)) / growth if abs(growth) > 1e-12 else 1.0)
    return 2.0 * mean * turn
