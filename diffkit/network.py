"""Networks: the trained part of a model.

A network maps x: (B, C, *S) and c_noise: (B,) to (B, C', *S). It is independent of the schedule and of the meaning of
its output: `Model` scales its input, passes it the noise level as one number per example, and decodes its output. Any
`nn.Module` with `forward(x, c_noise, **cond)` can be used; `Network` adds what recipes and laws need.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The shape that a network is built for: channels in and out, spatial size, and number of classes (None:
    unconditional).

    With K classes, labels are 0..K-1, and K is the null class (no label).
    """

    in_channels: int
    out_channels: int
    size: tuple[int, ...] = ()
    classes: int | None = None


class Network(nn.Module):
    """Base of networks in recipes. Set `integer_time` if c_noise must be a whole number (an embedding table)."""

    integer_time: bool = False

    @classmethod
    def inner_shape(cls, shape: Shape) -> Shape:
        """Return the shape for which a recipe builds the networks inside this one, which itself gets `shape`.

        Override it if this network concatenates inputs: `replace(shape, in_channels=2 * shape.in_channels)`.
        """
        return shape

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Compute the output for x at the noise level c_noise; must not change its arguments in place.

        Args:
            x: Scaled noisy data: (B, C, *S).
            c_noise: The noise level as one number per example: (B,) float32.
            label: Class per example: (B,) long, if the network is conditional.

        Returns:
            The output, whose meaning a `Parameterization` defines: (B, C', *S).
        """
