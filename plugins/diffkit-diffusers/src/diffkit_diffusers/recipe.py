"""Recipes for imported weights: the sections of a recipe from a scheduler's configuration, and the reverse."""

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
FEW = 50


class Scheduler(BaseModel):
    """What a recipe can say of a scheduler; the defaults are those of DDPMScheduler."""

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
    """schedule, parameterization and sample of a recipe, for a model with so many channels (in, out).

    A DDPMScheduler becomes `ancestral`, another one the sampler `diffusers`. Raises UsageError DK081 for what no recipe
    can say.
    """
    try:
        found = Scheduler.model_validate_json(json.dumps(dict(config)))
    except ValidationError as error:
        notes = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}"[:200] for one in error.errors(include_url=False)[:8]]
        raise inexpressible("no recipe can express this scheduler", notes=notes) from error
    inside, outside = channels
    if outside not in (inside, 2 * inside):
        raise inexpressible(f"a model with {inside} channels in and {outside} out is no plain denoiser")
    schedule: dict[str, Any] = {"name": SCHEDULES[found.beta_schedule], "steps": found.num_train_timesteps}
    if found.beta_schedule != "squaredcos_cap_v2":
        schedule |= {"beta_start": found.beta_start, "beta_end": found.beta_end}
    prediction: Any = PREDICTIONS[found.prediction_type]
    learned = outside == 2 * inside
    variance = VARIANCES[found.variance_type or "fixed_small"] if learned or found.variance_type else "small"
    if found.kind != "DDPMScheduler" and found.kind in SCHEDULERS and not learned:
        sample: dict[str, Any] = {"sampler": {"name": "diffusers", "scheduler": found.kind}, "steps": FEW}
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
    """The configuration of a DDPMScheduler on a discrete schedule; None where diffusers has no word for it."""
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
    """A recipe with a comment on top."""
    head = "".join(f"# {line}\n" for line in title.splitlines())
    return head + "".join(f"{key}: {json.dumps(value, allow_nan=False)}\n" for key, value in sections.items())


def name_of(path: Path) -> str:
    """A name for the recipe of the run in `path`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).strip("-._")[:64] or "imported"


def adopted(name: str, data: Mapping[str, Any], model: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a recipe for weights from elsewhere; `model` holds schedule, parameterization and sample."""
    return {
        "name": name,
        "data": data,
        "schedule": model["schedule"],
        "parameterization": model["parameterization"],
        "network": network,
        "train": {"steps": 0, "ema": []},
        "sample": {**model["sample"], "count": 16},
    }
