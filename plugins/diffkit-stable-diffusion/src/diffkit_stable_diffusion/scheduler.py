"""The configuration of a scheduler of diffusers as the sections schedule, parameterization and sample of a recipe.

What belongs to the model is carried over: the noise levels and the prediction. The class of the scheduler and its times
choose sampler and grid, which `diffkit sample` can change. An option that changes the samples is carried over too, or
refused by name.
"""

from __future__ import annotations

import importlib
import json
import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from diffkit_diffusers.errors import inexpressible, not_a_model
from diffkit_diffusers.options import IGNORABLE, defaults_of, notes_of, options_in, unknown_notes
from diffkit_diffusers.recipe import PREDICTIONS, SCHEDULES, VARIANCES
from diffkit_diffusers.schedulers import LEGACY, REQUIRED, REQUIRED_BY_ONE, Required, Scheduler
from pydantic import ValidationError

from diffkit import plain

SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ancestral",
    "PNDMScheduler": "plms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "ancestral",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "UniPCMultistepScheduler": "unipc",
}
"""By scheduler the sampler; other schedulers become DDIM."""
WHOLE = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
"""Schedulers that round the times of `linspace`, halves to even."""
OBSOLETE = (*LEGACY, "predict_epsilon", "denoise_final")
"""Options of 2022 that diffusers no longer reads."""
CARRIED = ("rescale_betas_zero_snr", "set_alpha_to_one", "use_karras_sigmas", "sigma_min", "sigma_max")
"""Options of `REQUIRED` that a recipe can express here."""
_LATENTS = Required((False,), "it would force latents into [-1, 1]")
_ORDER = Required((2,), "the steps of order 3 at the start and the end are not those of diffkit, and order 1 is DDIM")
FIXED: Mapping[str, Required] = {
    **{option: one for option, one in REQUIRED.items() if option not in CARRIED},
    "thresholding": _LATENTS,
    "clip_sample": _LATENTS,
    "disable_corrector": Required(([],), "the sampler unipc corrects every step, or none"),
}
"""The values that options must have, whichever the scheduler; the first in place of an option to ignore."""
FIXED_OF: Mapping[str, Mapping[str, Required]] = {
    "DDPMScheduler": {
        "variance_type": Required(
            ("fixed_small", "fixed_small_log", "fixed_large"), "the network has no output for the variance"
        )
    },
    "DPMSolverMultistepScheduler": {
        "algorithm_type": Required(
            ("dpmsolver++", "deis", "sde-dpmsolver++"), "its steps extrapolate eps, those of dpmpp-2m x0"
        ),
        "solver_order": _ORDER,
        "solver_type": Required(("midpoint", "heun", "logrho", "bh1", "bh2"), "diffusers refuses it"),
        "variance_type": Required((None,), "the network has no output for the variance"),
    },
    "UniPCMultistepScheduler": {
        **REQUIRED_BY_ONE["UniPCMultistepScheduler"],
        "solver_order": _ORDER,
        "lower_order_final": Required((True,), "diffusers computes not-a-number in the step to clean data"),
    },
}
_OTHER_TIMES = "grids leading and trailing give equal ones"
_OTHER_STEPS = "with --sampler ddim they are those of DDIMScheduler"
DIFFERENT: Mapping[str, Mapping[str, tuple[Required, str]]] = {
    "DDIMScheduler": {"timestep_spacing": (REQUIRED_BY_ONE["DDIMScheduler"]["timestep_spacing"], _OTHER_TIMES)},
    "PNDMScheduler": {
        "timestep_spacing": (REQUIRED_BY_ONE["PNDMScheduler"]["timestep_spacing"], _OTHER_TIMES),
        "prediction_type": (REQUIRED_BY_ONE["PNDMScheduler"]["prediction_type"], _OTHER_STEPS),
    },
}
"""Values that options need for samples like those of diffusers, and what gives such samples otherwise; others are
imported with a warning, since the model itself is not concerned."""
FRACTIONAL = ("EulerDiscreteScheduler", "HeunDiscreteScheduler")
"""Schedulers whose levels by Karras et al. go from the first to the last of their times, not of the schedule."""
LARGEST = math.sqrt(2.0**24 - 1.0)
"""sigma / alpha at which diffusers starts a schedule that ends without signal: alpha_bar is 2^-24 there."""
STEPS, SCALE = 50, 7.5
"""Sampling steps and the scale of guidance, the defaults of StableDiffusionPipeline."""


def sections(config: Mapping[str, Any], prediction: str | None = None, ignore: Collection[str] = ()) -> dict[str, Any]:
    """Return the sections schedule, parameterization and sample.

    Args:
        config: configuration of the scheduler.
        prediction: epsilon, sample or v_prediction, in place of that of the configuration.
        ignore: names of options that are not read; default none.

    Returns:
        The sections.

    Raises:
        UsageError: DK081, an option is unknown, or changes the samples and cannot be carried over; DK080, there is no
            option to ignore.
    """
    name, values = _read(config, ignore)
    predicted = prediction or values["prediction_type"]
    schedule: dict[str, Any] = {"name": SCHEDULES[values["beta_schedule"]], "steps": values["num_train_timesteps"]}
    if values["beta_schedule"] != "squaredcos_cap_v2":
        schedule |= {end: float(values[end]) for end in ("beta_start", "beta_end")}
    if values.get("rescale_betas_zero_snr"):
        schedule = {"name": "zero-snr", "inner": schedule}
        if predicted == "epsilon":
            raise inexpressible(
                "rescale_betas_zero_snr: the last level has no signal, so eps does not determine x0",
                fix="pass --prediction v if the network predicts v",
            )
    return {"schedule": schedule, "parameterization": PREDICTIONS[predicted], "sample": _sample(name, values)}


def _read(config: Mapping[str, Any], ignore: Collection[str]) -> tuple[str, dict[str, Any]]:
    """Return the class of a scheduler and its options; those that are not stated have the defaults of the class.

    A scheduler of another class is read as a DDIMScheduler, with a warning. Raises UsageError DK081, which names each
    option that a recipe cannot express, with the reason.
    """
    stated = str(config.get("_class_name", "DDIMScheduler"))[:64]
    name = stated if stated in SAMPLERS else "DDIMScheduler"
    defaults, given = _options_of(name), options_in(config, ignore)
    if absent := [option for option in ignore if option not in config and option not in defaults]:
        raise not_a_model(f"{stated} has no option {absent[0][:64]} to ignore", fix="correct the name after --ignore")
    values = defaults | {option: value for option, value in given.items() if option in defaults}
    refused = {}
    for option, fixed in _fixed(name, values).items():
        if option in ignore:
            values[option] = fixed.values[0]
        elif values.get(option, fixed.values[0]) not in fixed.values:
            refused[option] = f"{option}: {str(values[option])[:64]} cannot be carried over: {fixed.reason}"
    if name != stated:
        warnings.warn(
            plain(f"{stated} has no counterpart among the samplers; the recipe has ddim instead"), stacklevel=4
        )
    elif strange := given.keys() - defaults.keys() - {*OBSOLETE}:
        # diffusers keeps options of the scheduler that a folder had before, and does not read them
        refused |= {one: note for one in strange - _options_of_all() for note in unknown_notes([one], ())}
    try:
        read = {option: value for option, value in values.items() if option in Scheduler.model_fields}
        Scheduler.model_validate_json(json.dumps(read))
    except (ValidationError, TypeError, ValueError) as error:
        notes = notes_of(error) if isinstance(error, ValidationError) else [str(error)]
        refused |= {note.partition(":")[0]: note for note in notes}
    if refused:
        names = ", ".join(sorted(option[:64] for option in refused)[:8])
        message = f"a recipe cannot express these options of {stated}: {names}"
        raise inexpressible(message, fix=IGNORABLE, notes=sorted(refused.values()))
    for option, (fixed, other) in DIFFERENT.get(name, {}).items():
        if values[option] not in fixed.values:
            warnings.warn(
                plain(f"{option} {values[option]}: samples differ from those of {name}: {fixed.reason}; {other}"),
                stacklevel=4,
            )
    return name, values


def _fixed(name: str, values: Mapping[str, Any]) -> dict[str, Required]:
    """Return the values that options of a scheduler must have, as far as they depend on each other."""
    found = {**FIXED, **FIXED_OF.get(name, {})}
    if name in FRACTIONAL and values["timestep_spacing"] != "linspace":
        found["use_karras_sigmas"] = Required((False,), "its first and last level depend on the number of steps")
    if name == "EulerDiscreteScheduler" and values["prediction_type"] != "v_prediction":
        del found["timestep_type"]
    return found


def _options_of(name: str) -> dict[str, Any]:
    return defaults_of(getattr(importlib.import_module("diffusers"), name))


def _options_of_all() -> set[str]:
    """Return the options of all schedulers of diffusers."""
    module = importlib.import_module("diffusers")
    return {option for name in dir(module) if name.endswith("Scheduler") for option in _options_of(name)}


def _sample(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `sample`: sampler and times of the scheduler, by the preset `diffusers` of the sampler."""
    sample = {"preset": "diffusers", "sampler": _sampler(name, values), "grid": _grid(name, values)}
    if SAMPLERS[name] == "ancestral":  # two schedulers, which start at different scales
        unit = name == "DDPMScheduler" or values["timestep_spacing"] == "leading"
        sample["start_scale"] = "unit" if unit else "sigma"
    return {
        **sample,
        "steps": STEPS,
        "guidance": [{"name": "cfg", "scale": SCALE, "names": ["text"]}],
        "conditions": {"text": ""},
        "count": 1,
        "batch_size": 4,
    }


def _sampler(name: str, values: Mapping[str, Any]) -> str | dict[str, Any]:
    options: dict[str, Any] = {}
    if name == "DDPMScheduler" and (variance := VARIANCES[values["variance_type"]]) != "small":
        options["variance"] = variance
    if name == "DPMSolverMultistepScheduler":
        options |= {"variant": "heun"} if values["solver_type"] == "heun" else {}
        options |= {"eta": 1.0} if values["algorithm_type"] == "sde-dpmsolver++" else {}
    if name == "EulerDiscreteScheduler" and values["rescale_betas_zero_snr"]:
        options["chart"] = "flow"  # the same steps, also from the level without signal
    return {"name": SAMPLERS[name], **options} if options else SAMPLERS[name]


def _grid(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    spacing = values["timestep_spacing"]
    if values.get("use_karras_sigmas"):
        ends = {end: values[end] for end in ("sigma_min", "sigma_max") if values.get(end) is not None}
        largest = {"sigma_max": LARGEST} if values.get("rescale_betas_zero_snr") else {}
        return {"name": "karras", **largest, **ends}
    grid: dict[str, Any] = {"name": spacing}
    if spacing == "leading":
        grid["offset"] = values["steps_offset"]
    if spacing == "linspace" and name in WHOLE:
        grid["rounding"] = "half-even"
    if "set_alpha_to_one" in values:
        grid["end"] = "clean" if values["set_alpha_to_one"] else "first"
    return grid
