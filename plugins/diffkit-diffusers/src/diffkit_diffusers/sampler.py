"""Schedulers of diffusers as a sampler.

The list of schedulers is closed, and so are the options of each. Options that choose levels (use_karras_sigmas,
timestep_spacing, shift, ...) are left out, since a grid chooses levels here, and so are options for the prediction of
the network, which a parameterization defines. Schedulers that accept no levels from outside (LCM, TCD), evaluate
between levels (KDPM2), or cannot end on clean data (DEIS) are left out too.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import FunctionType
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Denoiser, Level, LevelError, Noise, Sampler

SchedulerName = Literal[
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
]
Option = bool | int | float | str | tuple[int, ...]
SIGMA_TOLERANCE = 1e-3
FLOAT32_STEPS = "this scheduler computes its steps in float32"
EQUAL_STEPS = "the coefficients of PNDM are those of equal steps, as published"
Space = Literal["preserving", "exploding", "straight"]
Visits = Literal["once", "heun", "pndm"]

_CLIP = ("clip_sample", "clip_sample_range")
_THRESHOLD = ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
_SOLVER = ("solver_order", "solver_type", "lower_order_final", *_THRESHOLD)
_TRAILING = {"timestep_spacing": "trailing"}


@dataclass(frozen=True)
class SchedulerUse:
    """The use of one scheduler of diffusers.

    space     the scale of its x: alpha^2 + sigma^2 = 1, alpha = 1, or alpha + sigma = 1
    visits    evaluations per step: once; twice except in the last step; twice in the first step only
    fixed     arguments of its constructor that make it visit exactly the given levels
    options   further arguments that a recipe may set
    rounds    whether its steps are in float32 for every dtype of x
    """

    space: Space
    order: int = 1
    stochastic: bool = False
    visits: Visits = "once"
    fixed: Mapping[str, Any] = field(default_factory=lambda: dict(_TRAILING))
    options: tuple[str, ...] = ()
    given_times: bool = False
    rounds: bool = False


SCHEDULERS: Mapping[str, SchedulerUse] = {
    "DDPMScheduler": SchedulerUse(
        "preserving",
        stochastic=True,
        fixed={**_TRAILING, "clip_sample": False},
        options=("variance_type", *_CLIP, *_THRESHOLD),
    ),
    "DDIMScheduler": SchedulerUse(
        "preserving",
        fixed={**_TRAILING, "clip_sample": False, "set_alpha_to_one": True},
        options=(*_CLIP, *_THRESHOLD),
    ),
    "PNDMScheduler": SchedulerUse(
        "preserving",
        order=2,
        visits="pndm",
        fixed={**_TRAILING, "skip_prk_steps": True, "set_alpha_to_one": True},
    ),
    "DPMSolverMultistepScheduler": SchedulerUse(
        "preserving", order=2, options=("algorithm_type", "euler_at_final", *_SOLVER), given_times=True, rounds=True
    ),
    "DPMSolverSinglestepScheduler": SchedulerUse(
        "preserving",
        order=2,
        fixed={"lower_order_final": True},
        options=("algorithm_type", "solver_order", "solver_type", *_THRESHOLD),
        given_times=True,
    ),
    "UniPCMultistepScheduler": SchedulerUse(
        "preserving", order=2, options=("solver_order", "lower_order_final", "disable_corrector", *_THRESHOLD)
    ),
    "EulerDiscreteScheduler": SchedulerUse("exploding", rounds=True),
    "EulerAncestralDiscreteScheduler": SchedulerUse("exploding", stochastic=True, rounds=True),
    "HeunDiscreteScheduler": SchedulerUse("exploding", order=2, visits="heun", options=_CLIP),
    "FlowMatchEulerDiscreteScheduler": SchedulerUse("straight", fixed={}, rounds=True),
}


@dataclass(frozen=True)
class SchedulerState:
    """State: a scheduler, the levels in its own scale, and the index of the next step. Immutable."""

    scheduler: Any
    nodes: tuple[Level, ...]
    index: int = 0


@dataclass(frozen=True)
class Diffusers(Sampler[SchedulerState]):
    """One step of a scheduler of diffusers on the levels of the grid, for every schedule.

    Each run builds the scheduler with a table of betas whose n steps are exactly the n levels of the grid:
    beta_i = 1 - alpha_bar_i / alpha_bar_(i-1). So the scheduler steps from each of its times to the next and chooses no
    times itself; x is converted to its scale and back. The scheduler receives eps (a velocity in `straight` space),
    draws noise from the random stream of the run, and does not clip unless an option requests it (guidance clips).
    Most schedulers compute steps in float32; none starts at alpha = 0.

    scheduler   its class in diffusers; the list is closed
    options     of its constructor, those in `SCHEDULERS`
    eta         of DDIMScheduler
    Source: diffusers; for each method the paper that its documentation names.
    """

    scheduler: SchedulerName
    options: dict[str, Option] = field(default_factory=dict)
    eta: Annotated[float, Field(ge=0)] = 0.0
    reaches_noise = False
    syncs = True
    law_options = (
        {"scheduler": "DDPMScheduler"},
        {"scheduler": "DDIMScheduler", "eta": 0.6},
        {"scheduler": "PNDMScheduler"},
        {"scheduler": "UniPCMultistepScheduler"},
        {"scheduler": "HeunDiscreteScheduler"},
    )

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler {self.scheduler!r} is unknown; choose one of {', '.join(SCHEDULERS)}")
        unknown = [name for name in self.options if name not in self._how.options]
        if unknown:
            allowed = ", ".join(self._how.options) or "none"
            raise ValueError(f"options: {unknown[0]} cannot be set for {self.scheduler}; allowed: {allowed}")
        if str(self.options.get("variance_type", "")).startswith("learned"):
            raise ValueError("options: a learned variance_type is not supported; use the sampler ancestral")
        if self.eta and self.scheduler != "DDIMScheduler":
            raise ValueError("eta is an option of DDIMScheduler")
        self.init([Level(math.cos(angle), math.sin(angle)) for angle in (1.4, 0.7, 0.0)])

    @property
    def order(self) -> int:
        return int(cast(int, self.options.get("solver_order", self._how.order)))

    @property
    def stochastic(self) -> bool:
        return self._how.stochastic or self.eta > 0 or str(self.options.get("algorithm_type", "")).startswith("sde")

    @property
    def law_exemptions(self) -> dict[str, str]:
        """Laws that float32 steps (their tolerance is 1e-9) or coefficients of equal steps break, with the reason."""
        names = ("point-mass", "point-mass-law", "rotation", "shift", "rescaling", "reordering", "batch-composition")
        rounded = dict.fromkeys(names, FLOAT32_STEPS) if self._how.rounds else {}
        return {**rounded, "local-order": EQUAL_STEPS} if self.scheduler == "PNDMScheduler" else rounded

    @property
    def _how(self) -> SchedulerUse:
        return SCHEDULERS[self.scheduler]

    def nfe(self, n: int) -> int:
        return {"once": n, "heun": 2 * n - 1, "pndm": n + (n > 1)}[self._how.visits]

    def init(self, levels: Sequence[Level]) -> SchedulerState:
        """Build the scheduler for the levels.

        Raises LevelError DK501 for a grid from alpha = 0, ValueError if diffusers does not accept the options.
        """
        if levels[0].is_noise:
            raise LevelError(
                f"{self.scheduler} cannot start at alpha = 0",
                code="DK501",
                fix="start sampling with less noise (sample.start)",
            )
        # A scheduler ends on clean data; for a grid that does not, its last step is not used.
        given = list(levels) if levels[-1].is_clean else [*levels, Level(levels[-1].alpha, 0.0)]
        nodes = tuple(_scaled(level, self._how.space) for level in given)
        try:
            return SchedulerState(self._scheduler(nodes), nodes)
        except NotImplementedError as error:
            raise ValueError(f"options: {error}") from error

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: SchedulerState | None, noise: Noise
    ) -> tuple[Tensor, SchedulerState]:
        assert state is not None
        scheduler, nodes, index = copy.deepcopy(state.scheduler), state.nodes, state.index
        z = x * (float(nodes[index].alpha) / float(t.alpha))
        draw = _with_noise(type(scheduler).step, noise, z)
        extra = {"eta": self.eta} if self.scheduler == "DDIMScheduler" else {}
        first = self._first_visit(index)
        for visit in range(first, self._first_visit(index + 1)):
            at = nodes[index + (visit > first)]
            if at.is_clean:
                break
            known = denoise(z, at)
            output = known.combine(-1.0, 1.0) if self._how.space == "straight" else known.eps
            time = scheduler.timesteps[visit]
            z = draw(scheduler, output, time, z, return_dict=False, **extra)[0].to(x.dtype)
        return z * (float(s.alpha) / float(nodes[index + 1].alpha)), replace(
            state, scheduler=scheduler, index=index + 1
        )

    def _first_visit(self, index: int) -> int:
        """Return the number of evaluations before step `index`."""
        return {"once": index, "heun": 2 * index, "pndm": index + (index > 0)}[self._how.visits]

    def _scheduler(self, nodes: Sequence[Level]) -> Any:
        """Build a scheduler whose only times are the nodes."""
        scheduler_class = getattr(importlib.import_module("diffusers"), self.scheduler)
        n = len(nodes) - 1
        if self._how.space == "straight":
            made = scheduler_class(num_train_timesteps=n)
            made.set_timesteps(sigmas=[float(node.sigma) for node in nodes[:-1]])
        else:
            kept = [float(node.alpha / node.scale) ** 2 for node in reversed(nodes)]
            betas = [1.0 - noisier / cleaner for cleaner, noisier in pairwise(kept)]
            options = {name: list(v) if isinstance(v, tuple) else v for name, v in self.options.items()}
            arguments = {**self._how.fixed, **options, "trained_betas": betas, "num_train_timesteps": n}
            made = scheduler_class(prediction_type="epsilon", **arguments)
            # Its own table is a product in float32, with relative errors of about 1e-3 near clean data.
            made.alphas_cumprod = torch.tensor(kept[1:], dtype=torch.float64)
            if self._how.given_times:
                made.set_timesteps(timesteps=list(reversed(range(n))))
            else:
                made.set_timesteps(n)
        self._pin(made, nodes)
        return made

    def _pin(self, made: Any, nodes: Sequence[Level]) -> None:
        """Set the exact levels; raise ValueError if this version of diffusers would visit other levels."""
        straight = self._how.space == "straight"
        ours = [float(node.sigma) if straight else float(node.sigma / node.alpha) for node in nodes]
        if self._how.visits == "heun":
            ours = [ours[0], *(value for value in ours[1:-1] for _ in range(2)), ours[-1]]
        theirs = made.sigmas.tolist() if hasattr(made, "sigmas") else ours
        visits = self.nfe(len(nodes) - 1)
        if len(made.timesteps) != visits or len(theirs) != len(ours) or not all(map(_close, theirs, ours)):
            raise ValueError(f"scheduler: {self.scheduler} cannot use given levels in this version of diffusers")
        if hasattr(made, "sigmas"):
            made.sigmas = torch.tensor(ours, dtype=torch.float64)
        made.is_scale_input_called = (
            True  # else EulerDiscreteScheduler warns at each step; the denoiser scales its input itself
        )


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SIGMA_TOLERANCE, abs_tol=1e-12)


def _scaled(level: Level, space: Space) -> Level:
    """Return the level with the same signal-to-noise ratio in the scale of a scheduler."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    size = {"preserving": math.hypot(alpha, sigma), "exploding": alpha, "straight": alpha + sigma}[space]
    return Level(alpha / size, sigma / size)


def _with_noise(step: Any, noise: Noise, like: Tensor) -> FunctionType:
    """Copy the function `step` with `randn_tensor` replaced by `noise`, so that it uses no generator of torch."""

    def randn_tensor(
        shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
    ) -> Any:
        return noise(like).to(dtype=dtype or like.dtype)

    changed = {**step.__globals__, "randn_tensor": randn_tensor}
    return FunctionType(step.__code__, changed, step.__name__, step.__defaults__, step.__closure__)
