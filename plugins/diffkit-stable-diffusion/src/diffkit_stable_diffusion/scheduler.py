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
    """Return the section `sample`: DDIM at the times of the scheduler."""
    spacing, offset = config.get("timestep_spacing", "leading"), int(config.get("steps_offset", 0))
    grid: dict[str, Any] = {"name": "diffusers", "spacing": spacing, "offset": offset}
    return {
        "sampler": "ddim",
        "grid": "trailing" if spacing == "trailing" else grid,
        "steps": STEPS,
        "guidance": [{"name": "cfg", "scale": SCALE, "names": ["text"]}],
        "conditions": {"text": ""},
        "count": 1,
        "batch_size": 4,
        "allow_mismatch": True,
    }
