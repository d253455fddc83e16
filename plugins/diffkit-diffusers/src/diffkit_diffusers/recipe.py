"""Recipes for imported weights: convert the configuration of a scheduler to sections of a recipe, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from diffkit import Discrete, Schedule

from .errors import inexpressible
from .schedulers import ReadScheduler, read_scheduler

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "learned_range": "learned"}
SAMPLING_STEPS = 50


def sections(config: Mapping[str, Any], channels: tuple[int, int], ignore: Collection[str] = ()) -> dict[str, Any]:
    """Build the sections schedule, parameterization and sample of a recipe.

    A DDPMScheduler becomes `ancestral`, with guidance `clip` if it clips; one with dynamic thresholding and all other
    schedulers become the sampler `diffusers`. The grid visits the times of the scheduler.

    Args:
        config: configuration of the scheduler; empty for the defaults of DDPMScheduler.
        channels: numbers of channels of the model (in, out).
        ignore: names of options that are not read; default none.

    Returns:
        The sections.

    Raises:
        UsageError: DK081, a recipe cannot express an option.
    """
    found = read_scheduler(config, ignore)
    options = found.options
    inside, outside = channels
    if outside not in (inside, 2 * inside):
        raise inexpressible(f"a model with {inside} input and {outside} output channels is not a denoiser of the data")
    learned = outside == 2 * inside
    _check_variance(found, learned, given=bool(config))
    schedule: dict[str, Any] = {"name": SCHEDULES[options.beta_schedule], "steps": options.num_train_timesteps}
    if options.beta_schedule != "squaredcos_cap_v2":
        schedule |= {"beta_start": options.beta_start, "beta_end": options.beta_end}
    prediction: Any = PREDICTIONS[options.prediction_type]
    sample: dict[str, Any]
    if found.name == "DDPMScheduler" and not options.thresholding:
        learned_default = learned and not config
        variance = "learned" if learned_default else VARIANCES[options.variance_type or "fixed_small"]
        clip = {"low": -options.clip_sample_range, "high": options.clip_sample_range}
        sample = {
            "sampler": {"name": "ancestral", "variance": variance},
            "guidance": [{"name": "clip", **clip}] if options.clip_sample else [],
        }
    else:
        sampler = {"name": "diffusers", "scheduler": found.name, "options": found.of_sampler}
        sample = {"sampler": sampler, "steps": min(SAMPLING_STEPS, options.num_train_timesteps)}
    spaced = bool(config) and options.timestep_spacing != "trailing"  # a model without a scheduler has no spacing
    if spaced:
        spacing = {"spacing": options.timestep_spacing, "offset": options.steps_offset}
        sample["grid"] = {"name": "diffusers", "scheduler": found.name, **spacing}
    if spaced and options.timestep_spacing == "leading":  # starts below the noise of training, as in diffusers
        sample["allow_mismatch"] = True
    return {
        "schedule": schedule,
        "parameterization": {"name": "learned-range", "inner": prediction} if learned else prediction,
        "sample": sample,
    }


def _check_variance(found: ReadScheduler, learned: bool, *, given: bool) -> None:
    """Raise UsageError DK081 unless the scheduler reads the outputs that the model has."""
    reads = found.options.variance_type == "learned_range"
    if given and reads != learned and not (learned and found.name == "DDPMScheduler"):
        note = (
            f"variance_type: a model with {'' if learned else 'no '}output for the variance requires "
            f"variance_type {'learned_range' if learned else 'fixed_small or fixed_large'}"
        )
        raise inexpressible("a recipe cannot express this scheduler", notes=[note])


def scheduler_config(schedule: Schedule, name: str, prediction: str) -> dict[str, Any] | None:
    """Build the configuration of a DDPMScheduler.

    Args:
        schedule: the schedule of the run.
        name: the name of the schedule in the recipe.
        prediction: name of the parameterization.

    Returns:
        The configuration; None if the schedule is continuous or diffusers lacks the prediction.
    """
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if not isinstance(schedule, Discrete) or prediction not in predictions:
        return None
    config: dict[str, Any] = {
        "num_train_timesteps": schedule.steps,
        "prediction_type": predictions[prediction],
        "timestep_spacing": "trailing",
    }
    if name in ("linear", "scaled-linear"):
        betas = {"beta_schedule": name.replace("-", "_")}
        return config | betas | {key: getattr(schedule, key) for key in ("beta_start", "beta_end")}
    return config | {"trained_betas": schedule.betas.tolist()}


def recipe_text(title: str, sections: Mapping[str, Any]) -> str:
    """Write a recipe: a comment, then one line per section, its value as JSON (which YAML includes)."""
    head = "".join(f"# {line}\n" for line in title.splitlines())
    return head + "".join(f"{key}: {json.dumps(value, allow_nan=False)}\n" for key, value in sections.items())


def name_of(path: Path) -> str:
    """Derive the name of a recipe from the run directory `path`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).strip("-._")[:64] or "imported"


def imported_sections(
    name: str, data: Mapping[str, Any], model: Mapping[str, Any], network: Mapping[str, Any]
) -> dict[str, Any]:
    """Build all sections of a recipe for imported weights.

    Args:
        name: name of the recipe.
        data: the section `data`.
        model: the sections schedule, parameterization and sample.
        network: the section `network`.

    Returns:
        The sections; training has 0 steps and no averages.
    """
    return {
        "name": name,
        "data": data,
        "schedule": model["schedule"],
        "parameterization": model["parameterization"],
        "network": network,
        "train": {"steps": 0, "ema": []},
        "sample": {**model["sample"], "count": 16},
    }
