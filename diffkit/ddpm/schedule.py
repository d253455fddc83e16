"""Discrete schedules in which beta, or its square root, is linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from diffkit.schedule import Discrete

Steps = Annotated[int, Field(ge=1, le=100_000)]
Beta = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Linear(Discrete):
    """The linear schedule of DDPM: beta_t is linear in t from beta_start to beta_end, t = 1..T.

    beta_start and beta_end do not depend on `steps`. This schedule is "linear" in diffusers; CompVis uses the name
    "linear" for `scaled-linear`. Source: Ho et al. 2020 (arXiv:2006.11239), sec. 4.
    """

    steps: Steps = 1000
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02

    def __post_init__(self) -> None:
        Discrete.__init__(self, torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64))


@dataclass(frozen=True)
class ScaledLinear(Discrete):
    """The schedule of Stable Diffusion: sqrt(beta_t) is linear in t from sqrt(beta_start) to sqrt(beta_end), t = 1..T.

    Source: Rombach et al. 2022 (arXiv:2112.10752), whose code calls it "linear".
    """

    steps: Steps = 1000
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012

    def __post_init__(self) -> None:
        roots = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float64)
        Discrete.__init__(self, roots**2)
