"""Operators: what is measured of a picture, y = A x, with the adjoint and the pseudo-inverse of A."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NoReturn

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from diffkit import ArgumentError, Codec, Scalar, UsageError, attribute, broadcast, build

WEIGHTS = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the luminance of Rec. 601."""
LEAST_RESPONSE = 1e-2
"""Frequencies that a blur multiplies by less are lost: their inverse would multiply noise by more than 100."""

_build: Callable[..., Any] = build


class Operator(ABC):
    """Base of operators on x: (B, C, H, W). Implement `__call__`, and `adjoint` and `solve` of a linear operator."""

    @attribute
    def linear(self) -> bool:
        """Whether A is linear; if not, `adjoint` and `solve` are not defined; default True."""
        return True

    @attribute
    def conditions(self) -> tuple[str, ...]:
        """The conditions that `at` takes, such as `mask`; default none."""
        return ()

    def at(self, cond: MutableMapping[str, Tensor]) -> Operator:
        """Return the operator for a batch; its own conditions are removed from `cond`."""
        return self

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Compute the measurement y = A x: (B, C, H, W) -> (B, C', H', W')."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Compute A^T y: (B, C', H', W') -> (B, C, H, W)."""
        self._refuse("adjoint")

    def solve(self, y: Tensor, a: Scalar, b: float) -> Tensor:
        """Compute (a A A^T + b I)^-1 y for y in the range of A.

        Args:
            y: A measurement: (B, C', H', W').
            a: Factor of A A^T, above 0: a float or (B,).
            b: Variance of the noise of y, 0 or more.

        Returns:
            A tensor of the shape of y.
        """
        self._refuse("solve")

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Compute A^+ y, the smallest x with A x = y if there is one: A A^+ A = A."""
        return self.adjoint(self.solve(y, 1.0, 0.0))

    def _refuse(self, name: str) -> NoReturn:
        message = f"{type(self).__name__.lower()} is not linear, so it has no {name}"
        raise UsageError(message, code="DK030", fix="use the method dps or ddnm")


@dataclass(frozen=True)
class Mask(Operator):
    """Measure the pixels that are known; the condition `mask` (B, 1 or C, H, W) is 1 there and 0 in the hole."""

    conditions = ("mask",)

    def at(self, cond: MutableMapping[str, Tensor]) -> Operator:
        if "mask" not in cond:
            fix = "pass mask=, 1 for known pixels and 0 in the hole, beside the measurement"
            raise ArgumentError("the operator mask requires the condition `mask`", code="DK030", fix=fix)
        return Kept(cond.pop("mask") > 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return self.at({})(x)


@dataclass(frozen=True)
class Kept(Operator):
    """The operator `mask` with a known mask, `keep`: (B or 1, 1 or C, H, W) bool. A A^T = A = A^T = A^+."""

    keep: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.keep, x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def solve(self, y: Tensor, a: Scalar, b: float) -> Tensor:
        return self(y / broadcast(a + b, y))


@dataclass(frozen=True)
class Downsample(Operator):
    """Measure the mean of each square of factor x factor pixels. A A^T = I / factor^2; A^+ repeats pixels."""

    factor: Annotated[int, Field(ge=2)] = 2

    def __call__(self, x: Tensor) -> Tensor:
        if any(length % self.factor for length in x.shape[2:]):
            size = "x".join(map(str, x.shape[2:]))
            divisors = [n for n in range(2, x.shape[2] + 1) if all(length % n == 0 for length in x.shape[2:])]
            message = f"a picture of {size} pixels does not divide into squares of {self.factor} pixels"
            fix = f"choose a factor of {', '.join(map(str, divisors))}" if divisors else "crop the picture"
            raise UsageError(message, code="DK030", fix=fix)
        return functional.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._repeated(y) / self.factor**2

    def solve(self, y: Tensor, a: Scalar, b: float) -> Tensor:
        return y / broadcast(a / self.factor**2 + b, y)

    def _repeated(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


@dataclass(frozen=True)
class Blur(Operator):
    """Blur by a Gaussian of `sigma` pixels, mirrored at the borders: cosine mode (i, j) times its Gaussian response.

    The response is exp(-sigma^2 (w_i^2 + w_j^2) / 2) with w_i = pi i / H, w_j = pi j / W; responses below
    `LEAST_RESPONSE` are 0. A is symmetric and diagonal in the cosine basis, so everything is in closed form.
    """

    sigma: Annotated[float, Field(gt=0)] = 1.5

    def __call__(self, x: Tensor) -> Tensor:
        return self._filtered(x, self._response(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def solve(self, y: Tensor, a: Scalar, b: float) -> Tensor:
        response = self._response(y)
        total = broadcast(a, y) * response**2 + b
        return self._filtered(y, torch.where(response > 0, 1.0 / torch.where(response > 0, total, 1.0), 0.0))

    def _response(self, x: Tensor) -> Tensor:
        each = [torch.arange(n, dtype=torch.float64, device=x.device) * (math.pi / n) for n in x.shape[2:]]
        response = torch.exp(-0.5 * self.sigma**2 * (each[0][:, None] ** 2 + each[1] ** 2))
        return torch.where(response >= LEAST_RESPONSE, response, 0.0).to(x.dtype)

    @staticmethod
    def _filtered(x: Tensor, factors: Tensor) -> Tensor:
        rows, columns = (cosine_basis(n, x) for n in x.shape[2:])
        return rows.T @ (factors * (rows @ x @ columns.T)) @ columns


@dataclass(frozen=True)
class Grey(Operator):
    """Measure the luminance of red, green and blue: y = .299 R + .587 G + .114 B. A A^T = the sum of squares.

    Source: ITU-R BT.601, the weights.
    """

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1] != len(WEIGHTS):
            message = f"the operator grey measures pictures of 3 channels, got {x.shape[1]}"
            raise UsageError(message, code="DK030", fix="use a run that was trained on colour pictures")
        return (self._weights(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._weights(y) * y

    def solve(self, y: Tensor, a: Scalar, b: float) -> Tensor:
        return y / broadcast(a * sum(w * w for w in WEIGHTS) + b, y)

    @staticmethod
    def _weights(x: Tensor) -> Tensor:
        return x.new_tensor(WEIGHTS)[:, None, None]


@dataclass(frozen=True)
class Decoded(Operator):
    """Measure decoded latents: y = A decode(z), with A^+ y encoded as the pseudo-inverse. It is not linear.

    `dps` differentiates the decoder; `ddnm` and `pgdm` encode what they add to z.
    Source: Rout et al. 2023 (arXiv:2307.00619), sec. 3, for `dps`; the other two are ours.
    """

    inner: Operator
    codec: Codec
    linear = False

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.inner.conditions

    def at(self, cond: MutableMapping[str, Tensor]) -> Operator:
        return replace(self, inner=self.inner.at(cond))

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner(self.codec.decode(x.float()))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.codec.encode(self.inner.pseudo_inverse(y))


def build_operator(name: str, **options: Any) -> Operator:
    """Build an operator from a name and options as `build` does, which has types for the kinds of diffkit only."""
    made: Operator = _build("operator", name, **options)
    return made


def cosine_basis(n: int, like: Tensor) -> Tensor:
    """Return the orthonormal cosine basis, whose row k is proportional to cos(pi k (i + 1/2) / n), in the dtype of
    `like`.
    """
    at = torch.arange(n, dtype=torch.float64, device=like.device)
    rows = torch.cos(math.pi / n * at[:, None] * (at + 0.5)) * math.sqrt(2.0 / n)
    rows[0] *= math.sqrt(0.5)
    return rows.to(like.dtype)
