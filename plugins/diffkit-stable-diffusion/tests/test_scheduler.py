"""Options of a scheduler of diffusers: the recipe draws the same samples, or the option is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

import diffusers
import pytest
import torch
from diffkit_stable_diffusion.pipeline import PIPELINES
from diffkit_stable_diffusion.scheduler import DIFFERENT, sections
from torch import Tensor

from diffkit import Assembly, Level, UsageError, assemble, load_recipe, sample
from diffkit.runs.planning import SampleRequest, plan_request
from diffkit.testing import MixtureOracle

F64 = torch.float64
MIXTURE = MixtureOracle([0.4, 0.6], torch.tensor([[-0.9], [0.7]], dtype=F64), [0.09, 0.2])
X = torch.tensor([[-1.2], [0.1], [2.0]], dtype=F64)
NOISE = torch.randn(40, 3, 1, dtype=F64, generator=torch.Generator().manual_seed(3))
RECIPE = {
    "name": "scheduler",
    "data": {"name": "mixture", "layout": "ring", "count": 8},
    "network": {"name": "mlp", "width": 8, "depth": 1},
    "train": {"steps": 10},
}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
LEADING, LINSPACE, TRAILING = ({"timestep_spacing": name} for name in ("leading", "linspace", "trailing"))
KARRAS = {"use_karras_sigmas": True}
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
SDE = {"algorithm_type": "sde-dpmsolver++"}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {"set_alpha_to_one": False}),
    ("DDIMScheduler", {"clip_sample": True}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    *(("DDPMScheduler", one) for one in (LEADING, LINSPACE, TRAILING, {"variance_type": "fixed_small_log"})),
    ("DDPMScheduler", LINSPACE | {"variance_type": "fixed_large"}),
    *(("EulerAncestralDiscreteScheduler", one) for one in (LEADING, LINSPACE, TRAILING, TRAILING | ZERO)),
    *(("EulerDiscreteScheduler", one) for one in (LEADING, LINSPACE, TRAILING, KARRAS)),
    *(("EulerDiscreteScheduler", one | ZERO) for one in (LEADING, LINSPACE, TRAILING, KARRAS)),
    ("EulerDiscreteScheduler", KARRAS | {"sigma_min": 0.1, "sigma_max": 10.0}),
    *(("HeunDiscreteScheduler", one) for one in (LEADING, LINSPACE, TRAILING, KARRAS)),
    *(("DPMSolverMultistepScheduler", one) for one in (LEADING, TRAILING, LEADING | KARRAS, TRAILING | ZERO)),
    *(("DPMSolverMultistepScheduler", one) for one in (SDE, SDE | {"solver_type": "heun"}, {"solver_type": "heun"})),
    ("DPMSolverMultistepScheduler", {"euler_at_final": True, "lower_order_final": False, "solver_type": "bh2"}),
    ("DPMSolverMultistepScheduler", KARRAS | ZERO),
    *(("UniPCMultistepScheduler", one) for one in (LEADING, TRAILING, KARRAS, TRAILING | ZERO)),
    ("UniPCMultistepScheduler", {"solver_type": "midpoint"}),
]


def config_of(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as StableDiffusionPipeline reads it from a file that diffusers writes."""
    made = getattr(diffusers, kind)(**SD | options)
    return json.loads(made.to_json_string()) | PIPELINES["StableDiffusionPipeline"]


def recipe(config: Mapping[str, Any], *overrides: str, ignore: Collection[str] = ()) -> Assembly:
    """The recipe of a scheduler, with other data and another network than Stable Diffusion."""
    found = sections(config, ignore=ignore)
    kept = {key: found["sample"][key] for key in ("preset", "sampler", "grid", "start_scale") if key in found["sample"]}
    return assemble(load_recipe({**RECIPE, **found, "sample": kept}, overrides))


def ours(config: Mapping[str, Any], n: int) -> Tensor:
    """The sample of the recipe."""
    assembly, noise = recipe(config, f"sample.steps={n}"), iter(NOISE)
    plan = plan_request(assembly, SampleRequest(count=3))
    return sample(MIXTURE, assembly.sampler, plan.levels, plan.start(X), noise=lambda x: next(noise))


def theirs(kind: str, config: Mapping[str, Any], n: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The sample of the scheduler, with the exact output of the mixture."""
    scheduler, noise = getattr(diffusers, kind).from_config(config), iter(NOISE)
    module = f"{type(scheduler).__module__}.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: next(noise), raising=False)
    scheduler.set_timesteps(n)
    exploding, x = kind.startswith(("Euler", "Heun")), X * float(scheduler.init_noise_sigma)
    for index, time in enumerate(scheduler.timesteps):
        x = scheduler.scale_model_input(x, time) if not exploding else x
        kept = float(scheduler.alphas_cumprod[int(time)])
        level = Level(math.sqrt(kept), math.sqrt(1.0 - kept))
        if hasattr(scheduler, "sigmas"):
            level = Level(1.0, float(scheduler.sigmas[index])).rescaled(1.0)
        output = MIXTURE(x * float(level.alpha) if exploding else x, level)
        v = scheduler.config.prediction_type == "v_prediction"
        scheduler.is_scale_input_called = True
        given = output.combine(-float(level.sigma), float(level.alpha)) if v else output.eps
        x = scheduler.step(given, time, x).prev_sample
    return x


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_samples_are_those_of_diffusers(kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(kind, options)
    zero = "rescale_betas_zero_snr" in options  # diffusers starts these at alpha_bar = 2^-24
    for n in (20,) if zero else (5, 20):
        tolerance = 1e-3 if zero else 2e-4
        torch.testing.assert_close(ours(config, n), theirs(kind, config, n, monkeypatch), rtol=0, atol=tolerance)


def test_every_option_is_carried_over_or_refused_by_name() -> None:
    solver = "DPMSolverMultistepScheduler"
    for kind, options in (
        (solver, {"final_sigmas_type": "sigma_min", "algorithm_type": "sde-dpmsolver"}),
        (solver, {"solver_order": 3}),
        (solver, {"use_exponential_sigmas": True}),
        (solver, {"use_beta_sigmas": True}),
        (solver, {"use_lu_lambdas": True}),
        (solver, {"use_flow_sigmas": True}),
        (solver, {"final_sigmas_type": "sigma_min"}),
        (solver, {"thresholding": True}),
        (solver, {"variance_type": "learned_range"}),
        (solver, {"lambda_min_clipped": -5.0}),
        ("UniPCMultistepScheduler", {"solver_order": 3}),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}),
        ("UniPCMultistepScheduler", {"lower_order_final": False}),
        ("UniPCMultistepScheduler", {"predict_x0": False}),
        ("PNDMScheduler", {"skip_prk_steps": False}),
        ("DDPMScheduler", {"variance_type": "learned"}),
        ("EulerDiscreteScheduler", LEADING | KARRAS),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_type": "continuous"}),
        ("HeunDiscreteScheduler", TRAILING | KARRAS),
        ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}),
        ("DDIMScheduler", {"beta_schedule": "sigmoid"}),
        ("DDIMScheduler", {"steps_offset": "one"}),
        ("DDIMScheduler", {"of_a_later_version": 1}),
    ):
        config = {"_class_name": kind, "skip_prk_steps": True, **SD, "clip_sample": False, **options}
        with pytest.raises(UsageError) as caught:
            sections(config)
        assert caught.value.code == "DK081"
        assert [*options][-1] in caught.value.message
        assert "--ignore" in str(caught.value.fix)
        spacing = {} if kind in DIFFERENT else LINSPACE
        recipe({key: value for key, value in config.items() if key != "beta_schedule"} | spacing, ignore=[*options])
    with pytest.raises(UsageError, match="no option steps to ignore"):
        sections(SD, ignore=["steps"])


OLD = {"trained_betas": None, "clip_sample": False, "num_train_timesteps": 1000, "_diffusers_version": "0.6.0"}
FIRST = SD | OLD | {"set_alpha_to_one": False, "skip_prk_steps": True}
SOLVER = SD | {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "denoise_final": True,
    "predict_epsilon": True,
}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"_class_name": "PNDMScheduler", **FIRST}, ("plms", "eps", "leading", 1, "first")),
        (
            {"_class_name": "DDIMScheduler", **FIRST, "prediction_type": "v_prediction"},
            ("ddim", "v", "leading", 1, "first"),
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", **SOLVER}, ("dpmpp-2m", "eps", "linspace", None, "clean")),
        (
            {
                "_class_name": "EulerDiscreteScheduler",
                **FIRST,
                **TRAILING,
                "interpolation_type": "linear",
                "use_karras_sigmas": False,
                "sigma_max": None,
                "timestep_type": "discrete",
                "original_inference_steps": 50,
                "_use_default_values": ["timestep_type"],
            },
            ("euler", "eps", "trailing", None, "clean"),
        ),
    ],
)
def test_configurations_of_well_known_models(config: dict[str, Any], wanted: tuple[Any, ...]) -> None:
    made = recipe(config).recipe
    grid = made.sample.grid.options
    found = (made.sample.sampler.name, made.parameterization.name, made.sample.grid.name)
    assert (*found, grid.get("offset"), grid.get("end", "clean")) == wanted


@pytest.mark.parametrize(
    ("kind", "options", "n", "match"),
    [
        ("DDIMScheduler", LINSPACE, 20, "timestep_spacing linspace: samples differ .* grids leading and trailing"),
        ("PNDMScheduler", LINSPACE, 20, "timestep_spacing linspace: samples differ"),
        ("PNDMScheduler", {"prediction_type": "v_prediction"}, 20, "prediction_type v_prediction.*--sampler ddim"),
    ],
)
def test_what_differs_from_diffusers_is_warned_of(
    kind: str, options: dict[str, Any], n: int, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(kind, {**options, **({"skip_prk_steps": True} if kind == "PNDMScheduler" else {})})
    with pytest.warns(UserWarning, match=match):
        found = ours(config, n)
    assert float((found - theirs(kind, config, n, monkeypatch)).abs().max()) > 1e-2


def test_another_scheduler_becomes_ddim_with_a_warning() -> None:
    config = {"_class_name": "LCMScheduler", **FIRST, "original_inference_steps": 50}
    with pytest.warns(UserWarning, match="LCMScheduler has no counterpart"):
        assert recipe(config).recipe.sample.sampler.name == "ddim"
