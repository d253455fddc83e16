"""Denoisers: functions that estimate x0 and eps from a noisy x at a level.

A `Denoiser` is any function (x, level, **cond) -> Estimate. `Model` makes a denoiser from a network, a parameterization
and the schedule of its training; guidance changes a denoiser; oracles are denoisers in closed form.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .errors import ArgumentError, LevelError
from .estimate import Estimate
from .level import Level, broadcast
from .parameterization import Parameterization
from .scalar import Scalar
from .schedule import Schedule

SLACK_CLEAN, SLACK_NOISY = 1e-5, 1e-6
"""Relative tolerance in the angle of a level at the ends of the schedule: levels from tables in float32 lie within."""


class Denoiser(Protocol):
    """Estimate x0 and eps from x: (B, C, *S) at `level`; each condition in `cond` has one row per example."""

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate: ...


@dataclass(frozen=True)
class Model:
    """A denoiser made from a network, the meaning of its output, and the schedule it was trained on.

    `network` is any `nn.Module` with `forward(x, c_noise, **cond)`, x: (B, C, *S), c_noise: (B,) float32.
    The levels of a sampler need not lie on `schedule`: x is rescaled to the level of `schedule` with the same
    signal-to-noise ratio, which changes neither x0 nor eps, and the level is never rounded. The network computes in
    the dtype of its weights (or under autocast); its output is decoded in the dtype of x.

    `rounds_time`: pass the index of a schedule to the network rounded to a whole number, halves to even; the level of x
    and the decoding stay exact.
    """

    network: nn.Module
    parameterization: Parameterization
    schedule: Schedule
    rounds_time: bool = False

    def __post_init__(self) -> None:
        kinds = {"network": nn.Module, "parameterization": Parameterization, "schedule": Schedule}
        for position, (name, kind) in enumerate(kinds.items(), 1):
            if not isinstance(getattr(self, name), kind):
                expected = "an nn.Module" if kind is nn.Module else f"a {kind.__name__}"
                argument = f"Model(network, parameterization, schedule): argument {position} (`{name}`)"
                raise ArgumentError.of(argument, expected, getattr(self, name), "check the order of the arguments")
        try:
            inspect.signature(self.network.forward).bind(None, None)
        except TypeError as error:
            message = f"Model: {type(self.network).__name__}.forward cannot be called as forward(x, c_noise): {error}"
            raise ArgumentError(message, fix="let forward take x: (B, C, *S) and c_noise: (B,)") from error

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        """Estimate x0 and eps of x.

        Args:
            x: Noisy data at `level`: (B, C, *S), floating point.
            level: A level of any scale, of floats or of tensors (B,).
            **cond: Conditions of the network, one row per example, such as label: (B,) long.

        Returns:
            The estimate at `level`, in the dtype of x.

        Raises:
            LevelError: The level lies outside the schedule (DK506), or the output cannot be decoded there.
            ArgumentError: x is not a tensor of floating point, or `level` is not a Level.
        """
        if not isinstance(level, Level):
            raise ArgumentError.of(
                "Model: argument 2 (`level`)", "a Level", level, "pass a level, such as schedule.level(t)"
            )
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentError(
                f"Model: argument 1 (`x`) must be a floating-point tensor, got {got}",
                fix="convert it, such as data.to_model_range(x)",
            )
        t = self.schedule.time(level)
        if not isinstance(t, Tensor) and not self.schedule.t_clean < t < self.schedule.t_noise:
            self._check_inside(level)
        own = self._on_schedule(level, t)
        z = x if own is level else x * broadcast(own.scale / level.scale, x)
        y = self.output(z, own, t, **cond)
        if self.parameterization.full_precision and y.dtype in (torch.float16, torch.bfloat16):
            raise LevelError(
                f"{type(self.parameterization).__name__.lower()} cannot be decoded from a {y.dtype} output: "
                "the division amplifies rounding errors",
                code="DK505",
                fix="run the network in float32 (train.precision: fp32), or use eps or x0",
            )
        estimate = self.parameterization.decode(y.to(x.dtype), z, own)
        return estimate if own is level else estimate.at_level(level)

    def output(self, x: Tensor, level: Level, t: Scalar | None = None, /, **cond: Tensor) -> Tensor:
        """Compute the undecoded output of the network at a level of `schedule`.

        Args:
            x: Noisy data at `level`: (B, C, *S).
            level: A level that lies on `schedule`.
            t: The time of `level`; computed from `level` by default.
            **cond: Conditions of the network, one row per example.

        Returns:
            The output: (B, C', *S), in the dtype of the network.
        """
        c_in = broadcast(self.parameterization.c_in(level), x)
        z = x if isinstance(c_in, float) and c_in == 1.0 else c_in * x
        c_noise = self._c_noise(level, t)
        if isinstance(c_noise, Tensor):
            c_noise = c_noise.to(device=x.device, dtype=torch.float32).expand(len(x))
        else:
            c_noise = torch.full((len(x),), c_noise, device=x.device, dtype=torch.float32)
        weight = next((p for p in self.network.parameters() if p.is_floating_point()), z)
        y: Tensor = self.network(z.to(weight.dtype), c_noise, **cond)
        return y

    def _c_noise(self, level: Level, t: Scalar | None) -> Scalar:
        """c_noise of the parameterization if it defines one, else the index of the schedule."""
        c_noise = self.parameterization.c_noise(level)
        if c_noise is not None:
            return c_noise
        index = self.schedule.index(self.schedule.time(level) if t is None else t)
        if not self.rounds_time and not getattr(self.network, "integer_time", False):
            return index
        return index.round() if isinstance(index, Tensor) else float(round(index))

    def _check_inside(self, level: Level) -> None:
        """Raise LevelError if a level of floats lies outside the schedule."""
        clean, noise = self.schedule.level(self.schedule.t_clean), self.schedule.noise
        if not float(clean.angle) * (1 - SLACK_CLEAN) <= float(level.angle) <= float(noise.angle) * (1 + SLACK_NOISY):
            raise LevelError(
                f"a level with sigma/alpha = {float(level.ratio):.9g} is outside the levels the model was trained on, "
                f"[{float(clean.ratio):.9g}, {float(noise.ratio):.9g}]",
                code="DK506",
                fix="start and end the grid inside (sample.grid, sample.start), or use a sampler that adds less noise",
            )

    def _on_schedule(self, level: Level, t: Scalar) -> Level:
        """Return the level of the same signal-to-noise ratio on the schedule; `level` itself if it lies there."""
        scale = self.schedule.level(t).scale
        if not isinstance(scale, Tensor) and abs(scale / float(level.scale) - 1.0) < 1e-9:
            return level
        return level.rescaled(scale)

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.network.parameters())
        name = type(self.network).__name__
        return f"Model({name} with {size:,} parameters, {self.parameterization}, {self.schedule})"
