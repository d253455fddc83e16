"""The sampler of rectified flow."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffkit import Denoiser, Level, Noise, Sampler


@dataclass(frozen=True)
class Straight(Sampler[None]):
    """Straight steps x_s = alpha_s x0 + sigma_s eps: on `rectified`, Euler steps x + (s - t) u with u = eps - x0.

    On every other schedule this is DDIM without noise (identity A8b of docs/theory/identities.md). Exact in one step if
    the paths are straight.
    Source: Liu et al. 2023 (arXiv:2209.03003), sec. 2.1.
    """

    order = 1

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: None, noise: Noise) -> tuple[Tensor, None]:
        return denoise(x, t).step_to(s), None
