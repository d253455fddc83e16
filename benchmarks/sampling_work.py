"""What the contestants of benchmarks/sampling.py do: walks of a few steps with a U-Net, or with a network that is free.

Only names that every version of diffkit has are used, so that an older checkout can take part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from contestants import Size, network
from torch import Tensor, nn

from diffkit import Model, build, sample
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear

Walk = Callable[[], Tensor]
SAMPLERS = ("ddim", "ancestral", "dpmpp-2m")


class Free(nn.Module):
    """A network that returns one tensor, whatever its input is."""

    integer_time = False

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        """x: (B, C, *S) -> the same tensor at every call."""
        return self.output


def ours(steps: int, *size: Any) -> dict[str, Walk]:
    """Walks of diffkit, by sampler: with the U-Net of `Size(*size)`, and with a free network under `SAMPLER, free`."""
    made = Size(*size)
    x = torch.randn(made.batch, *made.shape)
    levels = build("grid", "trailing").levels(Linear(), steps)
    net, free = network(made).eval(), Free(torch.randn_like(x))
    walks: dict[str, Walk] = {}
    for name in SAMPLERS:
        sampler = build("sampler", name)
        for suffix, module in (("", net), (", free", free)):
            model = Model(module, Eps(), Linear())
            walks[name + suffix] = lambda model=model, sampler=sampler: sample(  # type: ignore[misc]
                model, sampler, levels, x, noise=_constant_noise(x)
            )
    return walks


def diffusers(steps: int, *size: Any) -> dict[str, Walk]:
    """The same walks with the schedulers of diffusers around our U-Net, as its pipelines write the loop."""
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    made = Size(*size)
    x = torch.randn(made.batch, *made.shape)
    net, free = network(made).eval(), Free(torch.randn_like(x))
    plain = {"clip_sample": False, "timestep_spacing": "trailing"}
    zero = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
    schedulers = {
        "ddim": (DDIMScheduler, plain),
        "ancestral": (DDPMScheduler, plain),
        "dpmpp-2m": (DPMSolverMultistepScheduler, zero),
    }
    walks: dict[str, Walk] = {}
    for name, (scheduler, options) in schedulers.items():
        for suffix, module in (("", net), (", free", free)):
            walks[name + suffix] = lambda s=scheduler, o=options, m=module: _loop(s(**o), steps, m, x)  # type: ignore[misc]
    return walks


def _loop(scheduler: Any, steps: int, net: nn.Module, x: Tensor) -> Tensor:
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            y = net(x, torch.full((len(x),), float(t)))
            x = scheduler.step(y, t, x).prev_sample
    return x


def _constant_noise(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Noise that is drawn once: drawing costs the same for everyone and is no part of the sampler."""
    z = torch.randn_like(x)
    return lambda like: z.to(like.dtype)
