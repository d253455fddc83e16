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
CLOSE = 1e-3
SINGLE = "this scheduler computes its steps in float32"
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


@dataclass(frozen=True)
class Running:
    """A scheduler on its way: `nodes` are the levels in its own scale, `index` is the next step. Never changed."""

    scheduler: Any
    nodes: tuple[Level, ...]
    index: int = 0


@dataclass(frozen=True)
class Diffusers(Sampler[Running]):
    """One step of a scheduler of diffusers, on the levels of the grid, whatever their curve.

    The scheduler is built anew for each run, with a table of betas whose n steps are exactly the n levels of the grid:
    beta_i = 1 - alpha_bar_i / alpha_bar_(i-1). So it walks from each of its times to the next, and no choice of times
    of its own is left; x is carried to the scale that it works in and back. It gets eps (a velocity in `straight`
    space), draws its noise from ours, and does not clip unless told to (guidance does).
    Steps are computed in float32 by most schedulers, and alpha = 0 is not reached.

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
            raise ValueError(f"scheduler {self.scheduler!r} is none of {', '.join(SCHEDULERS)}")
        unknown = [name for name in self.options if name not in self._how.options]
        if unknown:
            allowed = ", ".join(self._how.options) or "none"
            raise ValueError(f"options: {self.scheduler} may not be told {unknown[0]}; allowed: {allowed}")
        if str(self.options.get("variance_type", "")).startswith("learned"):
            raise ValueError("options: variance_type is learned; the sampler ancestral reads such a head")
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
        """Laws that rounding to float32 breaks: they are held to 1e-9."""
        names = ("point-mass", "point-mass-law", "rotation", "shift", "rescaling", "reordering", "batch-composition")
        return dict.fromkeys(names, SINGLE) if self._how.rounds else {}

    @property
    def _how(self) -> Wrapped:
        return SCHEDULERS[self.scheduler]

    def nfe(self, n: int) -> int:
        return {"once": n, "heun": 2 * n - 1, "pndm": n + (n > 1)}[self._how.visits]

    def init(self, levels: Sequence[Level]) -> Running:
        """Raises LevelError DK501 for a grid from alpha = 0, ValueError where diffusers refuses the options."""
        if levels[0].is_noise:
            raise LevelError(
                f"{self.scheduler} cannot start at alpha = 0",
                code="DK501",
                fix="start the grid below it (sample.start)",
            )
        # A scheduler ends on clean data; where the grid does not, the last of its steps is left out.
        given = list(levels) if levels[-1].is_clean else [*levels, Level(levels[-1].alpha, 0.0)]
        nodes = tuple(_scaled(level, self._how.space) for level in given)
        try:
            return Running(self._scheduler(nodes), nodes)
        except NotImplementedError as error:
            raise ValueError(f"options: {error}") from error

    def step(
        self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Running | None, noise: Noise
    ) -> tuple[Tensor, Running]:
        assert state is not None
        scheduler, nodes, index = copy.deepcopy(state.scheduler), state.nodes, state.index
        z = x * (float(nodes[index].alpha) / float(t.alpha))
        draw = _with_noise(type(scheduler).step, noise, z)
        told = {"eta": self.eta} if self.scheduler == "DDIMScheduler" else {}
        first = self._first_visit(index)
        for visit in range(first, self._first_visit(index + 1)):
            at = nodes[index + (visit > first)]
            if at.is_clean:
                break
            known = denoise(z, at)
            output = known.combine(-1.0, 1.0) if self._how.space == "straight" else known.eps
            time = scheduler.timesteps[visit]
            z = draw(scheduler, output, time, z, return_dict=False, **told)[0].to(x.dtype)
        return z * (float(s.alpha) / float(nodes[index + 1].alpha)), replace(
            state, scheduler=scheduler, index=index + 1
        )

    def _first_visit(self, index: int) -> int:
        """How often the model was asked before step `index`."""
        return {"once": index, "heun": 2 * index, "pndm": index + (index > 0)}[self._how.visits]

    def _scheduler(self, nodes: Sequence[Level]) -> Any:
        """A scheduler whose only times are the nodes."""
        kind = getattr(importlib.import_module("diffusers"), self.scheduler)
        n = len(nodes) - 1
        if self._how.space == "straight":
            made = kind(num_train_timesteps=n)
            made.set_timesteps(sigmas=[float(node.sigma) for node in nodes[:-1]])
        else:
            kept = [float(node.alpha / node.scale) ** 2 for node in reversed(nodes)]
            betas = [1.0 - noisier / cleaner for cleaner, noisier in pairwise(kept)]
            options = {name: list(v) if isinstance(v, tuple) else v for name, v in self.options.items()}
            told = {**self._how.fixed, **options, "trained_betas": betas, "num_train_timesteps": n}
            made = kind(prediction_type="epsilon", **told)
            # Its own table is a product in float32, which near clean data is off by parts in a thousand.
            made.alphas_cumprod = torch.tensor(kept[1:], dtype=torch.float64)
            if self._how.given_times:
                made.set_timesteps(timesteps=list(reversed(range(n))))
            else:
                made.set_timesteps(n)
        self._pin(made, nodes)
        return made

    def _pin(self, made: Any, nodes: Sequence[Level]) -> None:
        """Give it the levels without its rounding; refuse a version of diffusers that would walk others than ours."""
        straight = self._how.space == "straight"
        ours = [float(node.sigma) if straight else float(node.sigma / node.alpha) for node in nodes]
        if self._how.visits == "heun":
            ours = [ours[0], *(value for value in ours[1:-1] for _ in range(2)), ours[-1]]
        theirs = made.sigmas.tolist() if hasattr(made, "sigmas") else ours
        visits = self.nfe(len(nodes) - 1)
        if len(made.timesteps) != visits or len(theirs) != len(ours) or not all(map(_close, theirs, ours)):
            raise ValueError(f"scheduler: {self.scheduler} of this diffusers does not take the levels of a grid")
        if hasattr(made, "sigmas"):
            made.sigmas = torch.tensor(ours, dtype=torch.float64)
        made.is_scale_input_called = True  # else Euler's warns at each step: our denoiser scales its input itself


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=1e-12)


def _scaled(level: Level, space: Space) -> Level:
    """The level of the same signal-to-noise ratio in the scale of a scheduler."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    size = {"preserving": math.hypot(alpha, sigma), "exploding": alpha, "straight": alpha + sigma}[space]
    return Level(alpha / size, sigma / size)


def _with_noise(step: Any, noise: Noise, like: Tensor) -> FunctionType:
    """The same function with `randn_tensor` replaced, so that every draw is ours and no generator of torch moves."""

    def randn_tensor(
        shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
    ) -> Any:
        return noise(like).to(dtype=dtype or like.dtype)

    changed = {**step.__globals__, "randn_tensor": randn_tensor}
    return FunctionType(step.__code__, changed, step.__name__, step.__defaults__, step.__closure__)
