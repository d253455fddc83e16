"""Augmentation that does not leak: the network receives the parameters of each change, and zeros when it samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as fn

from diffkit import Augmentation, Cond, DataError, normal_quantile

Strength = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class EDM(Augmentation):
    """Flips, scaling, rotation, stretching and translation of images x: (B, C, H, W), and cond["augment"]: (B, 9).

    x_flip, y_flip     mirrored with probability 1/2
    scale              by 2^(scale a), a ~ N(0, 1)
    rotate             by an angle uniform in rotate * (-pi, pi)
    stretch            by 2^(stretch a) along a uniform direction, and by the inverse across it
    translate          by translate * (W a, H b)

    x_flip is drawn for all images, each other change is applied to an image with `probability`.
    A strength of 0 turns a change off. Labels: the flips (0 or 1), a of the scaling, (cos - 1, sin) of the angle,
    a (cos, sin) of the stretching, (a, b) of the translation; 0 for changes that were not applied. The network must
    accept them (`augment: 9` in unet), unless `labels` is off. Raises DataError DK310 if the data are not images.
    Source: Karras et al. 2022 (arXiv:2206.00364), app. F.2, table 6.
    Differs: one bilinear warp with reflected borders, in place of wavelet filters of twice the resolution.
    """

    probability: Annotated[float, Field(ge=0, le=1)] = 0.12
    x_flip: bool = True
    y_flip: bool = True
    scale: Strength = 0.2
    rotate: Annotated[float, Field(ge=0, le=1)] = 1.0
    stretch: Strength = 0.2
    translate: Strength = 0.125
    labels: bool = True
    draws = 13
    moves = True

    def __call__(self, x: Tensor, uniform: Tensor, cond: Cond) -> tuple[Tensor, Cond]:
        if x.ndim != 4:
            raise DataError("augmentation `edm` requires images, got vectors", code="DK310", fix="leave it out")
        u = uniform.double().unbind(1)
        flips = self._flips(u)
        warp, warps = self._warp(u, x.shape[-1], x.shape[-2])
        for axis, flip in zip((3, 2), flips):
            x = torch.where(flip.bool().view(-1, 1, 1, 1), x.flip(axis), x)
        moved = (torch.stack(warps).abs().sum(0) > 0).view(-1, 1, 1, 1)
        grid = fn.affine_grid(warp[:, :2].to(x.dtype), list(x.shape), align_corners=False)
        warped = fn.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        x = torch.where(moved, warped, x)
        if not self.labels:
            return x, cond
        return x, {**cond, "augment": torch.stack([*flips, *warps], 1).float()}

    def _flips(self, u: tuple[Tensor, ...]) -> list[Tensor]:
        across = (u[0] < 0.5).double() * self.x_flip
        return [across, (u[1] < 0.5).double() * self._on(u[2], float(self.y_flip))]

    def _warp(self, u: tuple[Tensor, ...], width: int, height: int) -> tuple[Tensor, list[Tensor]]:
        """Draw maps from coordinates of the result to coordinates of the image, in [-1, 1]: (B, 3, 3), and seven
        labels.
        """
        size = normal_quantile(u[4]) * self._on(u[3], self.scale)
        angle = math.pi * self.rotate * (2.0 * u[6] - 1.0) * self._on(u[5], self.rotate)
        amount, direction = normal_quantile(u[8]) * self._on(u[7], self.stretch), math.pi * (2.0 * u[9] - 1.0)
        shift = self._on(u[10], self.translate)
        right, down = normal_quantile(u[11]) * shift, normal_quantile(u[12]) * shift

        shrink, squeeze = torch.exp2(-self.scale * size), torch.exp2(-self.stretch * amount)
        inverse = _diagonal(shrink, shrink) @ _rotation(-angle)
        inverse = inverse @ _rotation(direction) @ _diagonal(squeeze, 1.0 / squeeze) @ _rotation(-direction)
        inverse = inverse @ _translation(-self.translate * width * right, -self.translate * height * down)
        across, along = torch.full_like(angle, 0.5 * width), torch.full_like(angle, 0.5 * height)
        turned = [torch.cos(angle) - 1.0, torch.sin(angle)]
        stretched = [amount * torch.cos(direction), amount * torch.sin(direction)]
        theta: Tensor = _diagonal(1.0 / across, 1.0 / along) @ inverse @ _diagonal(across, along)
        return theta, [size, *turned, *stretched, right, down]

    def _on(self, u: Tensor, strength: float) -> Tensor:
        """Return 1 for each image to which the change applies, else 0."""
        return (u < self.probability).double() * (strength > 0.0)


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _diagonal(a: Tensor, b: Tensor) -> Tensor:
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return _matrix([[a, zero, zero], [zero, b, zero], [zero, zero, one]])


def _rotation(angle: Tensor) -> Tensor:
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    c, s = torch.cos(angle), torch.sin(angle)
    return _matrix([[c, -s, zero], [s, c, zero], [zero, zero, one]])


def _translation(right: Tensor, down: Tensor) -> Tensor:
    zero, one = torch.zeros_like(right), torch.ones_like(right)
    return _matrix([[one, zero, right], [zero, one, down], [zero, zero, one]])
