"""Every option of every scheduler of diffusers: the samples are those of diffusers, or the import refuses it."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import diffusers
import pytest
import torch
from diffkit_diffusers.recipe import sections
from diffkit_diffusers.sampler import SCHEDULERS
from diffkit_diffusers.schedulers import REQUIRED, STRAIGHT
from torch import Tensor

from diffkit import Level, UsageError, build, sample
from diffkit.testing import MixtureOracle

F64 = torch.float64
T, STEPS = 100, 10
MIXTURE = MixtureOracle(
    [0.4, 0.6], torch.tensor([[-0.9, 0.3], [0.7, -0.4]], dtype=F64).reshape(2, 2, 1, 1), [0.09, 0.2]
)
X = torch.tensor([[-1.2, 0.5], [0.1, -0.9], [2.0, 1.1]], dtype=F64).reshape(3, 2, 1, 1)
NAMES = [name for name in SCHEDULERS if name != STRAIGHT]
VALUES: dict[str, tuple[Any, ...]] = {  # values to try of every option; an option that is not listed fails the test
    "num_train_timesteps": (50,),
    "beta_start": (2e-3,),
    "beta_end": (0.05,),
    "beta_schedule": ("scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "trained_betas": ([0.01] * T,),
    "variance_type": ("fixed_large", "fixed_small_log", "fixed_large_log", "learned", "learned_range"),
    "clip_sample": (True, False),
    "clip_sample_range": (0.5,),
    "prediction_type": ("sample", "v_prediction", "flow_prediction"),
    "thresholding": (True,),
    "dynamic_thresholding_ratio": (0.5,),
    "sample_max_value": (1.5,),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "steps_offset": (1,),
    "rescale_betas_zero_snr": (True,),
    "set_alpha_to_one": (True, False),
    "skip_prk_steps": (True, False),
    "solver_order": (1, 3),
    "algorithm_type": ("dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
    "solver_type": ("heun", "bh1", "midpoint"),
    "lower_order_final": (True, False),
    "euler_at_final": (True,),
    "predict_x0": (False,),
    "disable_corrector": ([0, 1],),
    "solver_p": ("x",),
    "use_karras_sigmas": (True,),
    "use_exponential_sigmas": (True,),
    "use_beta_sigmas": (True,),
    "use_lu_lambdas": (True,),
    "use_flow_sigmas": (True,),
    "flow_shift": (3.0,),
    "final_sigmas_type": ("sigma_min",),
    "lambda_min_clipped": (-2.0,),
    "use_dynamic_shifting": (True,),
    "time_shift_type": ("linear",),
    "sigma_min": (0.05,),
    "sigma_max": (1.0,),
    "shift_terminal": (0.1,),
    "interpolation_type": ("log_linear",),
    "timestep_type": ("continuous",),
}
# The values of required options, so that each other option is tried on a scheduler that can be imported.
BASE = {
    "num_train_timesteps": T,
    "beta_end": 0.1,
    "timestep_spacing": "leading",
    "set_alpha_to_one": True,
    "skip_prk_steps": True,
}
WITH = {  # an option that is read only beside another one is tried beside it too
    "clip_sample_range": {"clip_sample": True},
    "dynamic_thresholding_ratio": {"thresholding": True, "sample_max_value": 9.0},
    "sample_max_value": {"thresholding": True},
}
ALWAYS = {  # every value above of these options is carried over
    *("num_train_timesteps", "beta_start", "beta_end", "clip_sample", "clip_sample_range", "thresholding"),
    *("dynamic_thresholding_ratio", "sample_max_value", "steps_offset", "lower_order_final", "euler_at_final"),
    *("disable_corrector", "flow_shift", "time_shift_type"),
}
# diffusers cannot do this one; the sampler can, since it passes eps to every scheduler
UNABLE = ("EulerAncestralDiscreteScheduler", "prediction_type", "sample")
UNMOVED = {  # options that are carried over and change nothing here: diffusers ignores them, or the result is the same
    *("prediction_type", "set_alpha_to_one", "skip_prk_steps", "flow_shift", "time_shift_type"),
    *("DDIMScheduler thresholding", "DDIMScheduler dynamic_thresholding_ratio"),  # no x0 of this law is far outside
    "DPMSolverMultistepScheduler euler_at_final",
    *("DPMSolverMultistepScheduler lower_order_final", "DPMSolverSinglestepScheduler lower_order_final"),
    *("DPMSolverMultistepScheduler variance_type", "DPMSolverSinglestepScheduler variance_type"),
}


def noises() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(X.shape, generator=generator, dtype=F64) for _ in repeat(None))


def theirs(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Sample with the scheduler alone, as a pipeline of diffusers does; the model is the oracle."""
    made = getattr(diffusers, name)(**options)
    made.set_timesteps(STEPS)
    drawn = noises()
    module = importlib.import_module(type(made).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(drawn))
    x = X * float(made.init_noise_sigma)
    for time in made.timesteps:
        z = made.scale_model_input(x, time)
        kept = float(made.alphas_cumprod[int(time)])
        level = Level(math.sqrt(kept), math.sqrt(1.0 - kept))
        estimate = MIXTURE(z.to(F64), level)
        output = {
            "epsilon": estimate.eps,
            "sample": estimate.x0,
            "v_prediction": level.alpha * estimate.eps - level.sigma * estimate.x0,
        }[made.config.prediction_type]
        x = made.step(output, time, x, return_dict=False)[0]
    return x.to(F64)


def ours(name: str, options: dict[str, Any]) -> Tensor:
    """Sample with the sections that the import writes."""
    made = sections(json.loads(json.dumps({"_class_name": name, **options})), (1, 1))
    schedule = build("schedule", made["schedule"]["name"], **_options(made["schedule"]))
    given = made["sample"]
    sampler = build("sampler", given["sampler"]["name"], **_options(given["sampler"]))
    grid = given.get("grid", {"name": "trailing"})
    levels = build("grid", grid["name"], **_options(grid)).levels(schedule, STEPS)
    denoise: Any = MIXTURE
    for guidance in given.get("guidance", []):
        denoise = build("guidance", guidance["name"], **_options(guidance))(denoise)
    drawn = noises()
    exploding = name in SCHEDULERS and SCHEDULERS[name].space == "exploding"
    start = X if not exploding else X * float(levels[0].alpha) * _first_sigma(name, options)
    return sample(denoise, sampler, levels, start, noise=lambda like: next(drawn))


def _first_sigma(name: str, options: dict[str, Any]) -> float:
    made = getattr(diffusers, name)(**options)
    made.set_timesteps(STEPS)
    return float(made.init_noise_sigma)


def _options(section: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name != "name"}


def _known(name: str) -> list[str]:
    return [option for option in inspect.signature(getattr(diffusers, name)).parameters if option != "kwargs"]


def _cases(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each option of the installed class with each value to try, and the options of a scheduler that has it."""
    known = _known(name)
    base = {option: value for option, value in BASE.items() if option in known}
    if name == "DDPMScheduler":
        base["clip_sample"] = False
    yield "", base
    for option in known:
        for value in VALUES[option]:
            for beside in {}, WITH.get(option, {}):
                yield option, base | {k: v for k, v in beside.items() if k in known} | {option: value}


def _is_refused(name: str, option: str, options: dict[str, Any]) -> bool:
    """Import the scheduler; a refusal must name the option."""
    try:
        sections({"_class_name": name, **options}, (1, 1))
    except UsageError as error:
        if error.code != "DK081" or not any(option in note for note in error.notes):
            raise
        return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_carried_over_or_refused_by_name(name: str) -> None:
    refused = {option for option, options in _cases(name) if _is_refused(name, option, options)}
    assert "" not in refused
    assert not refused & ALWAYS


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_option_that_is_carried_over_gives_the_samples_of_diffusers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, taken, plain = set(), set(), X
    for option, options in _cases(name):
        if _is_refused(name, option, options):
            continue
        if (name, option, options.get(option)) == UNABLE:
            with pytest.raises(NotImplementedError):
                theirs(name, options, monkeypatch)
            continue
        got, want = ours(name, options), theirs(name, options, monkeypatch)
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-4, msg=lambda m, o=options: f"{o}: {m}")
        if not option:
            plain = got
            continue
        taken.add(option)
        if (got - plain).abs().max() > 1e-3:
            moved.add(option)
    assert {option for option in taken - moved if not {option, f"{name} {option}"} & UNMOVED} == set()


def test_all_faults_of_a_configuration_are_named_with_reasons() -> None:
    """Unknown options, unknown classes and values of a wrong type; and options that are ignored on request."""
    config = {"_class_name": "DDPMScheduler", "brand_new": 1, "clip_sample": "yes", "trained_betas": [0.1]}
    with pytest.raises(UsageError) as caught:
        sections(config, (1, 1))
    assert [note.split(":")[0] for note in caught.value.notes] == ["brand_new", "clip_sample", "trained_betas"]
    made = sections({**config, "clip_sample": False}, (1, 1), ("brand_new", "trained_betas"))
    assert made["sample"]["guidance"] == []
    for name in ("LCMScheduler", STRAIGHT, 7):
        with pytest.raises(UsageError, match="cannot express"):
            sections({"_class_name": name}, (1, 1))
    assert sections({"_class_name": "LCMScheduler"}, (1, 1), ["_class_name"])["schedule"]["steps"] == 1000
    unset = {"_class_name": "PNDMScheduler", "_use_default_values": ["beta_start"], "beta_start": 0.5}
    made = sections({**unset, "skip_prk_steps": True, "clip_sample": True}, (1, 1), ["set_alpha_to_one"])
    assert made["schedule"]["beta_start"] == 1e-4
    assert made["sample"]["sampler"] == {"name": "diffusers", "scheduler": "PNDMScheduler", "options": {}}
    assert made["sample"]["grid"]["spacing"] == "leading"


def test_every_required_option_can_be_ignored() -> None:
    for name in NAMES:
        wrong = {option: VALUES[option][-1] for option in _known(name) if option in REQUIRED}
        wrong |= {"timestep_spacing": "linspace"} if "timestep_spacing" in _known(name) else {}
        assert sections({"_class_name": name, **wrong}, (1, 1), list(wrong))["schedule"]["steps"] == 1000


def test_a_variance_needs_the_output_for_it() -> None:
    for config, channels in (
        ({"variance_type": "learned_range"}, (1, 1)),
        ({"_class_name": "DDIMScheduler"}, (1, 2)),
        ({"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned_range"}, (1, 1)),
    ):
        with pytest.raises(UsageError) as caught:
            sections(config, channels)
        assert caught.value.notes[0].startswith("variance_type:")
    solver = {"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned_range"}
    assert sections(solver, (1, 2))["parameterization"] == {"name": "learned-range", "inner": "eps"}
    assert sections({}, (1, 2))["sample"]["sampler"]["variance"] == "learned"
