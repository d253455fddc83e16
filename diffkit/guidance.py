"""Guidance: functions that change a denoiser, and compose with every sampler and parameterization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import ArgumentError
from .estimate import Estimate
from .interface import attribute
from .level import Level
from .scalar import Scalar


class Guidance(ABC):
    """Base of guidance. Implement `__call__`. If a guidance compares two estimates, its option `scale` is 1 for no
    guidance.

    A guidance that evaluates the estimate under all conditions and returns another one adds its x0 to `Estimate.aux` as
    `unguided`, so that a guidance around it, such as one that scales its result, needs no further evaluation.
    """

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"

    @property
    def needs_null(self) -> bool:
        """Whether the network is evaluated without conditions, which requires `condition_dropout` in training; by
        default as `inner`, or False.
        """
        inner = getattr(self, "inner", None)
        return isinstance(inner, Guidance) and inner.needs_null

    @property
    def null_conditions(self) -> tuple[str, ...] | None:
        """Names of the conditions whose null is evaluated if `needs_null`, None for all; by default as `inner`."""
        inner = getattr(self, "inner", None)
        return inner.null_conditions if isinstance(inner, Guidance) else None

    @attribute
    def limits_range(self) -> bool:
        """Whether the guidance only moves x0 into the range of the data, as clipping does; default False.

        The likelihood of a model with such a guidance can be computed.
        """
        return False

    @attribute
    def renoises(self) -> bool:
        """Whether eps is the noise that the next level receives and not that of x, as in CFG++; default False.

        Otherwise the guided estimate is consistent with x: alpha x0 + sigma eps = x.
        """
        return False

    @abstractmethod
    def __call__(self, denoise: Denoiser) -> Denoiser:
        """Return the guided denoiser, which may call `denoise` any number of times."""


def guide(denoise: Denoiser, guidance: Guidance | Sequence[Guidance]) -> Denoiser:
    """Apply one or several guidances to a denoiser; the last one changes the estimate last.

    Raises ArgumentError if `guidance` holds anything else, such as the name of a guidance.
    """
    for wrap in [guidance] if isinstance(guidance, Guidance) else guidance:
        if not isinstance(wrap, Guidance):
            raise ArgumentError.of(
                "guide(denoise, guidance): argument 2 (`guidance`)",
                "a Guidance or a list of them",
                wrap,
                'build it, such as build("guidance", "cfg", scale=2.0)',
            )
        denoise = wrap(denoise)
    return denoise


def evaluate(
    denoise: Denoiser, x: Tensor, level: Level, conditions: Sequence[Mapping[str, Tensor]]
) -> tuple[Estimate, ...]:
    """Evaluate a denoiser on the same x under several sets of conditions, in one call on a batch that holds x for each.

    Sets with different names, such as one without a label, are evaluated in a call each.

    Args:
        denoise: The denoiser.
        x: Noisy data at `level`: (B, *S).
        level: The level of x.
        conditions: The sets of conditions; a condition has B rows, or one row for all.

    Returns:
        One estimate for each set.
    """
    first, *others = conditions
    if not others or any(one.keys() != first.keys() for one in others):
        return tuple(denoise(x, level, **one) for one in conditions)
    many, rows = len(conditions), len(x)
    wide = Level(*(_repeated(value, many, x) for value in (level.alpha, level.sigma)))
    each = {name: torch.cat([_rows(one[name], rows) for one in conditions]) for name in first}
    estimate = denoise(torch.cat([x] * many), wide, **each)
    x0, eps = estimate.x0.chunk(many), estimate.eps.chunk(many)
    aux = {name: value.chunk(many) for name, value in estimate.aux.items()}
    return tuple(Estimate(level, x0[i], eps[i], {name: parts[i] for name, parts in aux.items()}) for i in range(many))


def _rows(value: Tensor, rows: int) -> Tensor:
    """Expand a condition of one row to `rows` rows."""
    return value if len(value) == rows else value.expand(rows, *value.shape[1:])


def _repeated(value: Scalar, many: int, x: Tensor) -> Scalar:
    """Repeat the rows of a coefficient that has a row for each example of x: (B, *S)."""
    if not isinstance(value, Tensor) or value.ndim not in (1, x.ndim) or len(value) != len(x):
        return value
    return torch.cat([value] * many)
