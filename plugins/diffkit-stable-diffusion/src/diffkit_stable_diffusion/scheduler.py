"""The configuration of a scheduler of diffusers as the sections schedule, parameterization and sample of a recipe.

What belongs to the model is carried over: the noise levels and the prediction. The class of the scheduler and its times
choose sampler and grid, which `diffkit sample` can change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffkit_diffusers.errors import inexpressible

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SAMPLERS = {
    "DDIMScheduler": ("ddim", "leading"),
    "DDPMScheduler": ("ancestral", "leading"),
    "PNDMScheduler": ("plms", "leading"),
    "EulerDiscreteScheduler": ("euler", "linspace"),
    "EulerAncestralDiscreteScheduler": ("ancestral", "linspace"),
    "HeunDiscreteScheduler": ("heun", "linspace"),
    "DPMSolverMultistepScheduler": ("dpmpp-2m", "linspace"),
    "UniPCMultistepScheduler": ("unipc", "linspace"),
}
"""By scheduler the sampler and the usual times; other schedulers become DDIM."""
ENDS = {"ddim": True, "plms": False}
"""Samplers of schedulers with the option set_alpha_to_one, and its default."""
STEPS, SCALE = 50, 7.5
"""Sampling steps and the scale of guidance, the defaults of StableDiffusionPipeline."""


def sections(config: Mapping[str, Any], prediction: str | None = None) -> dict[str, Any]:
    """Return the sections schedule, parameterization and sample.

    Args:
        config: configuration of the scheduler.
        prediction: epsilon, sample or v_prediction, in place of that of the configuration.

    Returns:
        The sections.

    Raises:
        UsageError: DK081, the levels or the prediction are not supported.
    """
    betas = str(config.get("beta_schedule", "linear"))[:64]
    predicted = prediction or str(config.get("prediction_type", "epsilon"))[:64]
    if betas not in SCHEDULES or config.get("trained_betas") is not None:
        told = "trained_betas" if betas in SCHEDULES else f"beta_schedule {betas}"
        raise inexpressible(f"the scheduler has {told}, and no schedule of diffkit has these levels")
    if predicted not in PREDICTIONS:
        raise inexpressible(f"prediction_type is {predicted}, not {', '.join(PREDICTIONS)}")
    schedule: dict[str, Any] = {"name": SCHEDULES[betas], "steps": int(config.get("num_train_timesteps", 1000))}
    if betas != "squaredcos_cap_v2":
        schedule |= {
            end: float(config.get(end, default)) for end, default in (("beta_start", 1e-4), ("beta_end", 0.02))
        }
    if config.get("rescale_betas_zero_snr"):
        schedule = {"name": "zero-snr", "inner": schedule}
        if predicted == "epsilon":
            raise inexpressible("rescale_betas_zero_snr: the last level has no signal, so eps does not determine x0")
    return {"schedule": schedule, "parameterization": PREDICTIONS[predicted], "sample": _sample(config)}


def _sample(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `sample`: sampler and times of the scheduler, by the preset `diffusers` of the sampler."""
    name = config.get("_class_name")
    sampler, usual = SAMPLERS.get(str(name), ("ddim", "leading"))
    spacing = "karras" if config.get("use_karras_sigmas") else config.get("timestep_spacing", usual)
    grid: dict[str, Any] = {"name": spacing}
    if spacing == "leading":
        grid["offset"] = int(config.get("steps_offset", 0))
    if sampler in ENDS and spacing != "karras":
        grid["end"] = "clean" if config.get("set_alpha_to_one", ENDS[sampler]) else "first"
    sample = {"preset": "diffusers", "sampler": sampler, "grid": grid}
    if sampler == "ancestral" and spacing != "leading":
        sample["start_scale"] = "sigma"
    return {
        **sample,
        "steps": STEPS,
        "guidance": [{"name": "cfg", "scale": SCALE, "names": ["text"]}],
        "conditions": {"text": ""},
        "count": 1,
        "batch_size": 4,
    }
