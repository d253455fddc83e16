"""The bound of diffkit.likelihood beside that of the authors' code, on the same function and noise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffkit_improved_ddpm.parameterization import LearnedRange
from diffkit_improved_ddpm.schedule import Cosine
from torch import Tensor, nn

from diffkit import Denoiser, Model, guide
from diffkit.basics.guidance import Clip
from diffkit.ddpm.parameterization import Eps
from diffkit.likelihood import Chain, Discretised, variational_bound

GOLDEN = json.loads((Path(__file__).parent / "golden" / "improved-diffusion.json").read_text(encoding="utf-8"))
VARIANCES = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED_RANGE": "learned"}


class Function(nn.Module):
    """The function that `golden/make.py` uses in place of a network."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        eps = 0.8 * x + 0.3 * torch.sin(3.0 * x)
        return torch.cat([eps, torch.cos(2.0 * x)], 1)[:, : self.heads * x.shape[1]]


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("name", VARIANCES)
def test_the_bound_is_that_of_the_authors(name: str, clip: bool) -> None:
    """With the tanh cdf, their floor, the first variance of their code, and the same noise; 1e-4 bits per dimension."""
    golden = GOLDEN["bounds"][f"{name}, {clip}"]
    schedule, x0 = Cosine(50), torch.tensor(GOLDEN["x0"])
    parameterization = LearnedRange(Eps()) if name == "LEARNED_RANGE" else Eps()
    model = Model(Function(2 if name == "LEARNED_RANGE" else 1), parameterization, schedule)
    denoise: Denoiser = guide(model, [Clip()]) if clip else model
    chain = replace(Chain.full(schedule), variance=VARIANCES[name], first="second" if name == "FIXED_LARGE" else "own")
    source = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=source)

    found = variational_bound(denoise, chain, x0, noise, Discretised(256, "tanh", 1e-12))
    total, prior, terms = (torch.tensor(golden[key], dtype=torch.float64) for key in ("total_bpd", "prior_bpd", "vb"))
    bits = 1 / torch.log(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(found.bits_per_dim, total, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.prior * bits, prior, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.layers.flip(0).T * bits, terms, rtol=1e-4, atol=1e-4)
