"""The schedulers of diffusers that can be wrapped: the list is closed, and so are the options of each.

Options that are left out choose levels (use_karras_sigmas, timestep_spacing, shift, ...), which here is the work of a
grid, or say what the network predicts, which is that of a parameterization. Schedulers that are left out take no levels
from outside (LCM, TCD), ask between them (KDPM2), or cannot end on clean data (DEIS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Space = Literal["preserving", "exploding", "straight"]
Visits = Literal["once", "heun", "pndm"]

_CLIP = ("clip_sample", "clip_sample_range")
_THRESHOLD = ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
_SOLVER = ("solver_order", "solver_type", "lower_order_final", *_THRESHOLD)
_TRAILING = {"timestep_spacing": "trailing"}


@dataclass(frozen=True)
class Wrapped:
    """How one scheduler is used.

    space     the scale of its x: alpha^2 + sigma^2 = 1, alpha = 1, or alpha + sigma = 1
    visits    how often it asks the model in a step: once; twice but in the last step; twice in the first step
    fixed     what its constructor is told so that it walks the given levels and nothing else
    options   what a recipe may tell its constructor besides
    rounds    whether its steps are in float32 whatever the type of x
    """

    space: Space
    order: int = 1
    stochastic: bool = False
    visits: Visits = "once"
    fixed: Mapping[str, Any] = field(default_factory=lambda: dict(_TRAILING))
    options: tuple[str, ...] = ()
    given_times: bool = False
    rounds: bool = False


SCHEDULERS: Mapping[str, Wrapped] = {
    "DDPMScheduler": Wrapped(
        "preserving",
        stochastic=True,
        fixed={**_TRAILING, "clip_sample": False},
        options=("variance_type", *_CLIP, *_THRESHOLD),
    ),
    "DDIMScheduler": Wrapped(
        "preserving",
        fixed={**_TRAILING, "clip_sample": False, "set_alpha_to_one": True},
        options=(*_CLIP, *_THRESHOLD),
    ),
    "PNDMScheduler": Wrapped(
        "preserving",
        order=2,
        visits="pndm",
        fixed={**_TRAILING, "skip_prk_steps": True, "set_alpha_to_one": True},
    ),
    "DPMSolverMultistepScheduler": Wrapped(
        "preserving", order=2, options=("algorithm_type", "euler_at_final", *_SOLVER), given_times=True, rounds=True
    ),
    "DPMSolverSinglestepScheduler": Wrapped(
        "preserving",
        order=2,
        fixed={"lower_order_final": True},
        options=("algorithm_type", "solver_order", "solver_type", *_THRESHOLD),
        given_times=True,
    ),
    "UniPCMultistepScheduler": Wrapped("preserving", order=2, options=("predict_x0", "disable_corrector", *_SOLVER)),
    "EulerDiscreteScheduler": Wrapped("exploding", rounds=True),
    "EulerAncestralDiscreteScheduler": Wrapped("exploding", stochastic=True, rounds=True),
    "HeunDiscreteScheduler": Wrapped("exploding", order=2, visits="heun", options=_CLIP),
    "FlowMatchEulerDiscreteScheduler": Wrapped("straight", fixed={}, rounds=True),
}
