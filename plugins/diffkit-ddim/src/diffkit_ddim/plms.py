"""The PLMS sampler: Adams steps of constant coefficients on eps, with the transfer of DDIM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from diffkit import SIGMA, Denoiser, Level, Noise, Sampler

ADAMS = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams-Bashforth coefficients for equal steps, by the number of known slopes, the newest first."""


Memory = tuple[Tensor, ...]
"""The last eps, the newest first."""


class PLMS(Sampler[Memory]):
    """Pseudo linear multistep sampling: the DDIM step with eps extrapolated from the last four, as for equal steps.

    The first step is repeated with the mean of eps at both ends, so n steps cost n + 1 evaluations. The extrapolation
    is exact for equal steps in sigma / alpha, which common grids do not have, so the order for the flow is 2.
    Source: Liu et al. 2022 (arXiv:2202.09778), eq. 12; Rombach et al. 2022 (arXiv:2112.10752), code; in diffusers it is
    PNDM with skip_prk_steps. Differs: the sums are of eps for every parameterization; those of diffusers are of
    outputs, which are eps for one only.
    """

    order = 2
    reaches_noise = False
    law_exemptions: ClassVar[dict[str, str]] = {
        "local-order": "its coefficients are those of equal steps, as published"
    }
    presets = (
        ("diffusers", {"grid": {"name": "leading", "offset": 1, "end": "first"}, "start_scale": "unit"}),
        ("diffusers", {"grid": {"name": "trailing", "end": "first"}, "start_scale": "unit"}),
    )

    def init(self, levels: Sequence[Level]) -> Memory:
        SIGMA.check(levels[0])
        return ()

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Memory | None, noise: Noise
    ) -> tuple[Tensor, Memory]:
        outputs = (denoise(x, t).eps, *(state or ()))[: len(ADAMS)]
        weights = ADAMS[len(outputs) - 1]
        eps = sum((w * e for w, e in zip(weights[1:], outputs[1:], strict=True)), weights[0] * outputs[0])
        if not state and not s.is_clean:
            eps = 0.5 * (eps + denoise(_moved(x, t, s, eps), s).eps)
        return _moved(x, t, s, eps), outputs

    def nfe(self, n: int) -> int:
        return n + (n > 1)


def _moved(x: Tensor, t: Level, s: Level, eps: Tensor) -> Tensor:
    """Return x at s for constant eps: alpha_s x0 + sigma_s eps with the x0 of x."""
    keep = float(s.alpha) / float(t.alpha)
    return (x * keep).add(eps, alpha=float(s.sigma) - keep * float(t.sigma))
