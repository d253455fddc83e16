"""CFG++: a step to the guided x0 with the noise of the estimate without conditions."""

from __future__ import annotations

from torch import Tensor

from diffkit import Denoiser, Estimate, Level, Noise, Sampler


class CFGPlusPlus(Sampler[None]):
    """First-order step x_s = alpha_s x0 + sigma_s eps_null: x0 is guided by cfg, the noise is that without conditions.

    Use it with guidance cfg of a scale between 0 and 1, the paper's lambda: the guided x0 lies between both estimates.
    Without guidance it is DDIM. It is not a guidance, since alpha x0 + sigma eps is not x, and samplers that
    use x, x0 or eps in another way would sample three different distributions.

    Source: Chung et al. 2025 (arXiv:2406.08070), Algorithm 2.
    """

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        estimate = denoise(x, t)
        if "null" not in estimate.aux:
            return estimate.step_to(s), None
        null = Estimate.from_x0(x, t, estimate.aux["null"])
        return Estimate(t, estimate.x0, null.eps).step_to(s), None
