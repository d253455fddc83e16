"""Mathematics on floats and on tensors, with the limits of IEEE arithmetic.

Levels hold Python floats during sampling and tensors during training. With these functions a formula is written once:
log(0) is -inf and 1/0 is inf for floats too, so that the signal-to-noise ratio of clean data is inf, not an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, cast, overload

import torch
from torch import Tensor

Scalar = float | Tensor


class Function(Protocol):
    """A function of one number that works on floats and on tensors."""

    @overload
    def __call__(self, x: float, /) -> float: ...
    @overload
    def __call__(self, x: Tensor, /) -> Tensor: ...
    @overload
    def __call__(self, x: Scalar, /) -> Scalar: ...


def _both(on_float: Callable[[float], float], on_tensor: Callable[[Tensor], Tensor], doc: str) -> Function:
    def function(x: Scalar, /) -> Scalar:
        if isinstance(x, float):
            return on_float(x)
        return on_tensor(x) if isinstance(x, Tensor) else on_float(float(x))

    function.__doc__ = doc
    return cast(Function, function)


def _pairs(
    on_floats: Callable[[float, float], float], on_tensors: Callable[[Tensor, Tensor], Tensor], doc: str
) -> Callable[[Scalar, Scalar], Scalar]:
    def function(x: Scalar, y: Scalar, /) -> Scalar:
        if isinstance(x, float) and isinstance(y, float):
            return on_floats(x, y)
        if isinstance(x, Tensor) or isinstance(y, Tensor):
            return on_tensors(*_tensors(x, y))
        return on_floats(float(x), float(y))

    function.__doc__ = doc
    return function


def _tensors(x: Scalar, y: Scalar) -> tuple[Tensor, Tensor]:
    """Convert both to tensors; a float takes the dtype and device of the other argument."""
    if not isinstance(x, Tensor):
        assert isinstance(y, Tensor)
        return torch.full_like(y, x), y
    return x, y if isinstance(y, Tensor) else torch.full_like(x, y)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def _log1p(x: float) -> float:
    return math.log1p(x) if x > -1 else -math.inf if x == -1 else math.nan


def _exp(x: float) -> float:
    return math.exp(x) if x < 709.0 else math.inf


def _expm1(x: float) -> float:
    return math.expm1(x) if x < 709.0 else math.inf


def _sqrt(x: float) -> float:
    return math.sqrt(x) if x >= 0 else math.nan


sqrt = _both(_sqrt, torch.sqrt, "Square root; nan below zero.")
log = _both(_log, torch.log, "Natural logarithm; log(0) = -inf.")
log1p = _both(_log1p, torch.log1p, "log(1 + x), exact near zero; log1p(-1) = -inf.")
exp = _both(_exp, torch.exp, "Exponential; inf on overflow.")
expm1 = _both(_expm1, torch.expm1, "exp(x) - 1, exact near zero; expm1(-inf) = -1.")
cos = _both(math.cos, torch.cos, "Cosine.")
sin = _both(math.sin, torch.sin, "Sine.")
tan = _both(math.tan, torch.tan, "Tangent.")


hypot = _pairs(math.hypot, torch.hypot, "sqrt(x^2 + y^2) without overflow.")
atan2 = _pairs(math.atan2, torch.atan2, "atan2(y, x): the angle of the point (x, y).")
minimum = _pairs(min, torch.minimum, "The smaller of the two, element by element.")
maximum = _pairs(max, torch.maximum, "The larger of the two, element by element.")


def divide(x: Scalar, y: Scalar) -> Scalar:
    """Return x / y; for floats too, x / 0 is inf with the sign of x, and 0 / 0 is nan."""
    if isinstance(x, Tensor) or isinstance(y, Tensor) or y != 0:
        return x / y
    return math.nan if x == 0 or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1.0, y)
