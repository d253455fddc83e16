"""The samplers of diffusers and k-diffusion, run on an exact denoiser at the levels that they believe in."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffkit import Denoiser, Level, Schedule

F64 = torch.float64
Run = Callable[[Denoiser, Tensor, int], Tensor | None]
LOADER = Path(__file__).parents[1] / "plugins" / "diffkit-dpmsolver" / "tests" / "golden" / "make.py"
LINEAR: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SPACINGS: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
LU: dict[str, dict[str, Any]] = {"log-SNR": {"use_lu_lambdas": True}}


def preserving(ratio: float) -> Level:
    """The variance-preserving level of this sigma / alpha."""
    return Level(1.0 / math.hypot(1.0, ratio), ratio / math.hypot(1.0, ratio))


def diffusers_runs(angle: Sequence[Sequence[Level]]) -> Iterator[tuple[str, str, Run]]:
    """(sampler, setting, run); `angle`[n - 1] is our grid of n steps, which they are given too, named so."""
    import diffusers

    diffusers.logging.set_verbosity_error()
    multistep = [{"solver_order": p, "solver_type": v} for p in (2, 3) for v in ("midpoint", "heun")]
    preserved: dict[str, tuple[type, list[dict[str, Any]], dict[str, dict[str, Any]]]] = {
        "DPMSolverMultistep": (diffusers.DPMSolverMultistepScheduler, multistep, {**SPACINGS, **LU}),
        "DPMSolverSinglestep": (
            diffusers.DPMSolverSinglestepScheduler,
            [{"solver_order": p} for p in (2, 3)],
            SPACINGS,
        ),
        "UniPC": (
            diffusers.UniPCMultistepScheduler,
            [{"solver_order": p, "solver_type": v} for p in (2, 3) for v in ("bh1", "bh2")],
            SPACINGS,
        ),
        "DEIS": (diffusers.DEISMultistepScheduler, [{"solver_order": p} for p in (2, 3)], SPACINGS),
    }
    for name, (cls, choices, spacings) in preserved.items():
        for options in choices:
            for end in ("zero", "sigma_min"):
                told = " ".join(map(str, options.values())) + ("" if end == "zero" else " to sigma_min")
                for title, spacing in spacings.items():
                    made = _understood(cls, {**LINEAR, **options, **spacing, "final_sigmas_type": end})
                    yield f"diffusers {name}", f"{told} {title}", _in_order(cls, made, None)
                if end == "zero" and name in ("DPMSolverMultistep", "UniPC"):
                    yield f"diffusers {name}, grid angle", told, _in_order(cls, {**LINEAR, **options}, angle)
    exploding: dict[str, type] = {
        "Euler": diffusers.EulerDiscreteScheduler,
        "Heun": diffusers.HeunDiscreteScheduler,
        "LMS": diffusers.LMSDiscreteScheduler,
    }
    for name, cls in exploding.items():
        for title, spacing in SPACINGS.items():
            yield f"diffusers {name}", title, _in_sigma(cls, _understood(cls, {**LINEAR, **spacing}))
    for spacing in ("linspace", "trailing", "leading"):
        yield "diffusers DDIM", spacing, _ddim(diffusers.DDIMScheduler, spacing)


def _understood(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    """The options that a scheduler has."""
    known = inspect.signature(cls).parameters
    return {name: value for name, value in options.items() if name in known}


def _in_order(cls: type, options: dict[str, Any], angle: Sequence[Sequence[Level]] | None) -> Run:
    """A scheduler whose x preserves the variance."""

    def run(denoise: Denoiser, x: Tensor, nfe: int) -> Tensor | None:
        scheduler = cls(**options)
        scheduler.set_timesteps(nfe)
        if len(scheduler.timesteps) != nfe:
            return None
        if angle is not None:
            ratios = [float(level.sigma) / float(level.alpha) for level in angle[nfe - 1]]
            scheduler.sigmas = torch.tensor(ratios, dtype=F64)
        scheduler.set_begin_index(0)
        for i, t in enumerate(scheduler.timesteps):
            eps = denoise(x, preserving(float(scheduler.sigmas[i]))).eps
            x = scheduler.step(eps, t, x).prev_sample.double()
        end = float(scheduler.sigmas[-1])
        return x if end == 0.0 else x / preserving(end).alpha

    return run


def _in_sigma(cls: type, options: dict[str, Any]) -> Run:
    """A scheduler whose x explodes the variance: alpha = 1. The start is our x at their first level."""

    def run(denoise: Denoiser, x: Tensor, nfe: int) -> Tensor | None:
        scheduler = cls(**options)
        scheduler.set_timesteps((nfe + 1) // 2 if cls.__name__.startswith("Heun") else nfe)
        if len(scheduler.timesteps) > nfe:
            return None
        scheduler.set_begin_index(0)
        x = x * math.hypot(1.0, float(scheduler.sigmas[0]))
        for i, t in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(x, t)
            eps = denoise(x, Level(1.0, float(scheduler.sigmas[i]))).eps
            x = scheduler.step(eps, t, x).prev_sample.double()
        return x

    return run


def _ddim(cls: type, spacing: str) -> Run:
    def run(denoise: Denoiser, x: Tensor, nfe: int) -> Tensor | None:
        scheduler = cls(**LINEAR, clip_sample=False, timestep_spacing=spacing)
        scheduler.set_timesteps(nfe)
        if len(scheduler.timesteps) != nfe:
            return None
        for t in scheduler.timesteps:
            alpha_bar = float(scheduler.alphas_cumprod[int(t)])
            eps = denoise(x, Level(math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar))).eps
            x = scheduler.step(eps, int(t), x).prev_sample.double()
        return x

    return run


def k_diffusion_runs(
    checkout: Path, schedule: Schedule, angle: Sequence[Sequence[Level]]
) -> list[tuple[str, str, Run]]:
    """The deterministic samplers of k-diffusion on its grids between the ends of the schedule, and on ours."""
    spec = importlib.util.spec_from_file_location("golden_of_k_diffusion", LOADER)
    assert spec is not None
    assert spec.loader is not None
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    sampling = golden.load(checkout)
    top, bottom = (float(level.sigma) / float(level.alpha) for level in (schedule.noise, schedule.level(1.0)))
    grids: dict[str, Callable[[int], Tensor]] = {
        "karras": lambda n: sampling.get_sigmas_karras(n, bottom, top),
        "exponential": lambda n: sampling.get_sigmas_exponential(n, bottom, top),
        "polyexponential 2": lambda n: sampling.get_sigmas_polyexponential(n, bottom, top, rho=2.0),
        "grid angle": lambda n: torch.tensor([float(v.sigma) / float(v.alpha) for v in angle[n - 1]]),
    }
    quiet: dict[str, Any] = {"eta": 0.0, "noise_sampler": lambda *_: 0.0}
    methods: dict[str, tuple[str, dict[str, Any], int]] = {
        "euler": ("sample_euler", {}, 1),
        "heun": ("sample_heun", {}, 2),
        "dpm_2": ("sample_dpm_2", {}, 2),
        "lms": ("sample_lms", {}, 1),
        "dpmpp_2m": ("sample_dpmpp_2m", {}, 1),
        "dpmpp_2s": ("sample_dpmpp_2s_ancestral", quiet, 2),
        "dpmpp_3m_sde, eta 0": ("sample_dpmpp_3m_sde", quiet, 1),
    }
    runs = []
    for name, (function, options, stages) in methods.items():
        for title, grid in grids.items():
            own = name if title != "grid angle" else f"{name}, grid angle"
            runs.append((f"k-diffusion {own}", title, _k(getattr(sampling, function), options, stages, grid)))
    return runs


def _k(function: Callable[..., Tensor], options: dict[str, Any], stages: int, grid: Callable[[int], Tensor]) -> Run:
    def run(denoise: Denoiser, x: Tensor, nfe: int) -> Tensor | None:
        sigmas = grid((nfe + 1) // 2 if stages == 2 else nfe).double()

        def denoised(x: Tensor, sigma: Tensor) -> Tensor:
            return denoise(x, Level(1.0, float(sigma[0]))).x0

        start = x * math.hypot(1.0, float(sigmas[0]))
        return function(denoised, start, sigmas, disable=True, **options)

    return run
