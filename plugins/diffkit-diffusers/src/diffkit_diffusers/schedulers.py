"""Read the configuration of a scheduler of diffusers: every option is carried over, or refused with the reason.

A scheduler chooses a schedule, a prediction, the times of a run and the step between them. A recipe has these in four
places, so an option is read here in one of three ways: as a field of `Scheduler`, as an option of the sampler
`diffusers`, or as one that must have a value at which it changes nothing (`_required`).
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffkit import DiffkitError

from .errors import inexpressible
from .options import IGNORABLE, defaults_of, notes_of, options_in, unknown_notes
from .sampler import SCHEDULERS, Diffusers, Option, SchedulerName

Beta = Annotated[float, Field(gt=0, lt=1)]
LEGACY = ("tensor_format", "timestep_values")  # options of 2022 that diffusers no longer reads
STRAIGHT = "FlowMatchEulerDiscreteScheduler"


class Scheduler(BaseModel):
    """The options that become parts of a recipe; an option that the class of scheduler lacks has its default here."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large", "learned_range"] | None = None
    clip_sample: bool = False
    clip_sample_range: Annotated[float, Field(gt=0)] = 1.0
    thresholding: bool = False
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "linspace"
    steps_offset: Annotated[int, Field(ge=0, le=100_000)] = 0


class Required(NamedTuple):
    """The values of an option at which a recipe computes the same, the first for an option to ignore; the reason."""

    values: tuple[Any, ...]
    reason: str


BETWEEN = "its levels lie between those of the schedule; choose a grid of diffkit instead, such as `karras`"
REQUIRED: Mapping[str, Required] = {
    "trained_betas": Required((None,), "no schedule of diffkit has a table of betas"),
    "rescale_betas_zero_snr": Required((False,), "choose `schedule: {name: zero-snr, inner: ...}` instead"),
    **dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"),
        Required((False,), BETWEEN),
    ),
    **dict.fromkeys(("sigma_min", "sigma_max", "shift_terminal"), Required((None,), BETWEEN)),
    "use_dynamic_shifting": Required((False,), BETWEEN),
    "interpolation_type": Required(("linear",), BETWEEN),
    "timestep_type": Required(("discrete",), BETWEEN),
    "lambda_min_clipped": Required((-math.inf,), "the schedule chooses the level at which sampling starts"),
    "final_sigmas_type": Required(("zero",), "the last step of a grid ends on clean data"),
    "set_alpha_to_one": Required((True,), "the last step of a grid ends on clean data"),
    "skip_prk_steps": Required((True,), "its first steps evaluate the network between the levels of the grid"),
    "predict_x0": Required((True,), "diffusers computes not-a-number in the step to clean data"),
    "solver_p": Required((None,), "it is another scheduler"),
}
_FRACTIONS = Required(("trailing", "leading"), "its times lie between those of the schedule")
_OVERLAP = Required(("trailing", "leading"), "its steps do not end at the time that it visits next")
_OF_EPS = Required(("epsilon",), "it averages outputs of the network over steps, the sampler averages eps")
REQUIRED_BY_ONE: Mapping[str, Mapping[str, Required]] = {
    "DDIMScheduler": {"timestep_spacing": _OVERLAP},
    "PNDMScheduler": {"timestep_spacing": _OVERLAP, "prediction_type": _OF_EPS},
    "UniPCMultistepScheduler": {
        "solver_type": Required(
            ("bh2", "midpoint", "heun", "logrho"), "diffusers computes not-a-number in the step to clean data"
        )
    },
    "EulerDiscreteScheduler": {"timestep_spacing": _FRACTIONS},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": _FRACTIONS},
    "HeunDiscreteScheduler": {"timestep_spacing": _FRACTIONS},
}
UNUSED_WITHOUT = {  # an option that diffusers reads only if the other one is set
    "clip_sample_range": "clip_sample",
    "dynamic_thresholding_ratio": "thresholding",
    "sample_max_value": "thresholding",
    "flow_shift": "use_flow_sigmas",
    "time_shift_type": "use_dynamic_shifting",
}


@dataclass(frozen=True)
class ReadScheduler:
    """A scheduler that a recipe can express: its class, its options, and those that the sampler `diffusers` gets."""

    name: SchedulerName
    options: Scheduler
    of_sampler: dict[str, Option]


def read_scheduler(config: Mapping[str, Any], ignore: Collection[str] = ()) -> ReadScheduler:
    """Read the configuration of a scheduler; missing options have the defaults of the class.

    Options in `ignore` are not read, and those in `REQUIRED` then have the value at which they change nothing.
    Raises UsageError DK081, which lists each option that a recipe cannot express, with the reason.
    """
    name = "DDPMScheduler" if "_class_name" in ignore else config.get("_class_name", "DDPMScheduler")
    if name == STRAIGHT:
        raise inexpressible(
            f"a recipe cannot express the times of {STRAIGHT}",
            fix="import the folder of the network alone, with --set schedule=rectified --set parameterization=flow "
            "--set sample.sampler=straight --set sample.guidance=[]",
        )
    if name not in SCHEDULERS:
        names = ", ".join(name for name in SCHEDULERS if name != STRAIGHT)
        raise inexpressible(
            f"a recipe cannot express the scheduler {str(name)[:64]}, only {names}",
            fix="pass --ignore _class_name to import it as a DDPMScheduler",
        )
    defaults = _options_of(name)
    given = options_in(config, ignore)
    read = {*Scheduler.model_fields, *REQUIRED, *UNUSED_WITHOUT, *SCHEDULERS[name].options, *SCHEDULERS[name].fixed}
    # diffusers drops an option that only other schedulers have, so it changes nothing
    elsewhere = {option for other in SCHEDULERS for option in _options_of(other)} - defaults.keys()
    notes = unknown_notes(given, {*read, *elsewhere, *LEGACY})
    values = defaults | {option: value for option, value in given.items() if option in defaults}
    required = {**REQUIRED, **REQUIRED_BY_ONE.get(name, {})}
    for option in required.keys() & defaults.keys():
        if option in ignore:
            values[option] = required[option].values[0]
        elif values[option] not in required[option].values:
            notes.append(f"{option}: {str(values[option])[:64]} cannot be carried over: {required[option].reason}")
    of_sampler = _of_sampler(name, values)
    try:
        fields = {option: value for option, value in values.items() if option in Scheduler.model_fields}
        found = Scheduler.model_validate_json(json.dumps(fields))
        if name != "DDPMScheduler" or found.thresholding:
            Diffusers(cast(SchedulerName, name), of_sampler)
    except ValidationError as error:
        notes += notes_of(error)
    except (ValueError, TypeError, DiffkitError) as error:
        notes.append(f"{', '.join(of_sampler)}: {str(error).splitlines()[0][:240]}")
    if notes:
        raise inexpressible("a recipe cannot express this scheduler", fix=IGNORABLE, notes=sorted(notes))
    return ReadScheduler(cast(SchedulerName, name), found, of_sampler)


def _options_of(name: str) -> dict[str, Any]:
    return defaults_of(getattr(importlib.import_module("diffusers"), name))


def _of_sampler(name: str, values: Mapping[str, Any]) -> dict[str, Option]:
    """Return the options of the sampler `diffusers` that differ from those that it would use anyway."""
    use = SCHEDULERS[name]
    without = {**_options_of(name), **use.fixed}
    return {
        option: values[option]
        for option in use.options
        if values[option] != without[option] and (option not in UNUSED_WITHOUT or values[UNUSED_WITHOUT[option]])
    }
