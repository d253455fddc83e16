"""Fourier features of the input of a network."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Network, Shape


class Fourier(Network):
    """Pass x and its Fourier features to `inner`: sin and cos of 2^n pi x, n = `lowest` and `lowest` + 1.

    The features let a network see differences of x that are small against its range, such as those between neighbouring
    values of discrete data: for b values in [-1, 1], 2^n near b / 2. Source: Kingma et al. 2021 (arXiv:2107.00630),
    app. C, with n = 7 and 8 for 256 values.
    """

    def __init__(self, inner: Network, lowest: Annotated[int, Field(ge=-4, le=12)] = 7) -> None:
        super().__init__()
        self.inner, self.frequencies = inner, (2.0**lowest * math.pi, 2.0 ** (lowest + 1) * math.pi)

    @classmethod
    def inner_shape(cls, shape: Shape) -> Shape:
        """Return `shape` with five channels for each channel of x: x itself, and two sines and cosines."""
        return replace(shape, in_channels=5 * shape.in_channels)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor) -> Tensor:
        """Apply `inner` to x and its features.

        Args:
            x: Scaled noisy data: (B, C, *S).
            c_noise: The noise level: (B,).
            label: Classes: (B,) long; none by default.
            **cond: Further conditions of `inner`.

        Returns:
            The output: (B, C', *S).
        """
        given = cond if label is None else {**cond, "label": label}
        waves = [wave(w * x) for w in self.frequencies for wave in (torch.sin, torch.cos)]
        features = torch.cat([x, *waves], 1)
        out: Tensor = self.inner(features, c_noise, **given)
        return out
