"""The bound can be followed wherever an early network is."""

from __future__ import annotations

import pytest
import torch

from diffkit import Discrete
from diffkit.ddpm.parameterization import Eps
from diffkit.likelihood import term


@pytest.mark.parametrize("bins", [None, 17, 256])
def test_a_network_that_says_nothing_has_a_finite_gradient(bins: int | None) -> None:
    """Pains 9: near alpha = 0 eps = 0 means a huge x0, in whose bin the decoder of t = 1 finds a probability of 0."""
    schedule = Discrete([0.5] * 27 + [0.999])
    t = torch.tensor([1, 2, 26, 27, 28]).repeat_interleave(2000)
    level, source = schedule.level(t), torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 17, (len(t), 4), generator=source) / 8 - 1
    x = level.add_noise(x0, torch.randn(x0.shape, generator=source))
    y = torch.zeros_like(x0, requires_grad=True)
    loss = term(x0, t, Eps().decode(y, x, level), schedule, "small", bins)
    (slope,) = torch.autograd.grad(loss.sum(), y)
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(slope).all())
    assert float((slope != 0).float().mean()) > 0.99
