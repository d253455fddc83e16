"""`sample.preset: diffusers` visits the times of diffusers, and its samples are those of diffusers."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from diffkit import Level, Recipe, assemble, load_recipe, sample
from diffkit.runs.planning import SampleRequest, plan_request
from diffkit.testing import MixtureOracle

F64 = torch.float64
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MIXTURE = MixtureOracle([0.4, 0.6], torch.tensor([[-0.9], [0.7]], dtype=F64), [0.09, 0.2])
X = torch.tensor([[-1.2], [0.1], [2.0]], dtype=F64)
RECIPE = """
name: preset
data: {name: mixture, layout: ring, count: 8}
schedule: {name: scaled-linear, steps: 1000, beta_start: 0.00085, beta_end: 0.012}
parameterization: eps
network: {name: mlp, width: 8, depth: 1}
train: {steps: 10}
"""
FIRST = {"steps_offset": 1, "set_alpha_to_one": False}
DDIM = FIRST | {"clip_sample": False}
SHIFTED = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
CASES = [
    ("ddim", None, "DDIMScheduler", DDIM),
    ("ddim", "trailing", "DDIMScheduler", TRAILING | DDIM),
    ("plms", None, "PNDMScheduler", FIRST | {"skip_prk_steps": True}),
    ("dpmpp-2m", None, "DPMSolverMultistepScheduler", {}),
    ("dpmpp-2m", "leading", "DPMSolverMultistepScheduler", SHIFTED),
    ("dpmpp-2m", "trailing", "DPMSolverMultistepScheduler", TRAILING),
    ("dpmpp-2m", "karras", "DPMSolverMultistepScheduler", KARRAS),
    ("unipc", None, "UniPCMultistepScheduler", {}),
    ("unipc", "leading", "UniPCMultistepScheduler", SHIFTED),
    ("euler", None, "EulerDiscreteScheduler", {}),
    ("euler", "leading", "EulerDiscreteScheduler", SHIFTED),
    ("euler", "karras", "EulerDiscreteScheduler", KARRAS),
    ("heun", None, "HeunDiscreteScheduler", {}),
    ("heun", "trailing", "HeunDiscreteScheduler", TRAILING),
]


def recipe(*sets: str) -> Recipe:
    return load_recipe(RECIPE, ["sample.preset=diffusers", *sets])


def theirs(name: str, options: dict[str, Any], n: int) -> tuple[list[float], Tensor]:
    """The times that a network receives from a scheduler, and its sample from X, with the exact eps of the mixture."""
    scheduler = getattr(diffusers, name)(**BETAS, **options)
    scheduler.set_timesteps(n)
    exploding, x = name.startswith(("Euler", "Heun")), X * float(scheduler.init_noise_sigma)
    for index, time in enumerate(scheduler.timesteps):
        kept = float(scheduler.alphas_cumprod[int(time)])
        level = Level(math.sqrt(kept), math.sqrt(1.0 - kept))
        if hasattr(scheduler, "sigmas"):
            level = Level(1.0, float(scheduler.sigmas[index]))
            level = level if exploding else level.rescaled(1.0)
        x = scheduler.step(MIXTURE(x, level).eps, time, x).prev_sample
    return scheduler.timesteps.tolist(), x


@pytest.mark.parametrize(
    ("sampler", "grid", "scheduler", "options", "n"),
    [(*one, n) for n in (5, 30) for one in CASES if n != 30 or one[:2] != ("ddim", "trailing")],  # 30: their defect
)
def test_times_and_samples_are_those_of_diffusers(
    sampler: str, grid: str | None, scheduler: str, options: dict[str, Any], n: int
) -> None:
    made = recipe(f"sample.sampler={sampler}", f"sample.steps={n}", *([f"sample.grid={grid}"] if grid else []))
    assembly = assemble(made)
    times, x = theirs(scheduler, options, n)
    levels = assembly.levels()
    told = [float(assembly.schedule.index(assembly.schedule.time(level))) for level in levels[:-1]]
    if made.sample.network_time == "rounded":
        told = [float(round(t)) for t in told]
    tolerance = 0.05 if grid == "karras" else 1e-3  # they interpolate log sigma between times, we the angle
    assert sorted(set(times), reverse=True) == pytest.approx(told, abs=tolerance)
    plan = plan_request(assembly, SampleRequest(count=3))
    ours = sample(MIXTURE, assembly.sampler, levels, plan.start(X))
    torch.testing.assert_close(ours, x, rtol=2e-4, atol=2e-4)  # their tables are products in float32
