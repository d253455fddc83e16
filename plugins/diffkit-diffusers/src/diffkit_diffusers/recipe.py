"""Recipes for imported weights: convert the configuration of a scheduler to sections of a recipe, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffkit import Discrete, Schedule

from .errors import inexpressible
from .sampler import SCHEDULERS

Beta = Annotated[float, Field(gt=0, lt=1)]
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}
SAMPLING_STEPS = 50


class Scheduler(BaseModel):
    """The options of a scheduler that a recipe can express; the defaults are those of DDPMScheduler."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, populate_by_name=True)

    kind: str = Field("DDPMScheduler", alias="_class_name", max_length=64)
    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: None = None
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    variance_type: Literal["fixed_small", "fixed_large", "learned_range"] | None = "fixed_small"
    clip_sample: bool = True
    rescale_betas_zero_snr: Literal[False] = False


def sections(config: Mapping[str, Any], channels: tuple[int, int]) -> dict[str, Any]:
    """Build the sections schedule, parameterization and sample of a recipe for a model with `channels` (in, out).

    A DDPMScheduler becomes `ancestral`, other schedulers the sampler `diffusers`. Raises UsageError DK081 for options
    that a recipe cannot express.
    """
    try:
        found = Scheduler.model_validate_json(json.dumps(dict(config)))
    except ValidationError as error:
        notes = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}"[:200] for one in error.errors(include_url=False)[:8]]
        raise inexpressible("a recipe cannot express this scheduler", notes=notes) from error
    inside, outside = channels
    if outside not in (inside, 2 * inside):
        raise inexpressible(f"a model with {inside} input and {outside} output channels is not a denoiser of the data")
    schedule: dict[str, Any] = {"name": SCHEDULES[found.beta_schedule], "steps": found.num_train_timesteps}
    if found.beta_schedule != "squaredcos_cap_v2":
        schedule |= {"beta_start": found.beta_start, "beta_end": found.beta_end}
    prediction: Any = PREDICTIONS[found.prediction_type]
    learned = outside == 2 * inside
    variance = VARIANCES[found.variance_type or "fixed_small"] if learned or found.variance_type else "small"
    if found.kind != "DDPMScheduler" and found.kind in SCHEDULERS and not learned:
        sample: dict[str, Any] = {"sampler": {"name": "diffusers", "scheduler": found.kind}, "steps": SAMPLING_STEPS}
    else:
        sample = {
            "sampler": {"name": "ancestral", "variance": variance if learned or variance != "learned" else "small"}
        }
    return {
        "schedule": schedule,
        "parameterization": {"name": "learned-range", "inner": prediction} if learned else prediction,
        "sample": sample | ({"guidance": ["clip"]} if found.clip_sample else {}),
    }


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
        "clip_sample": True,
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
