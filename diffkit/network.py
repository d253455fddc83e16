"""Networks: what is trained.

A network is a plain `nn.Module`: x (B, C, *S), c_noise (B,) -> (B, C', *S). It knows neither the schedule nor what
its output means; `Model` scales its input, tells it the noise level as one number, and decodes its output.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """What a network must fit: channels in and out, spatial size, number of classes (None: unconditional).

    Where `classes` is K, labels are 0..K-1 and K itself is the null class (no label).
    """

    in_channels: int
    out_channels: int
    size: tuple[int, ...] = ()
    classes: int | None = None


class Network(nn.Module):
    """Base of networks. Set `integer_time` where c_noise must be a whole number (an embedding table)."""

    integer_time: bool = False

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """x: (B, C, *S), c_noise: (B,) float, label: (B,) long where the network is conditional -> (B, C', *S).

        Arguments stay as they are, and so does an output when the network is called again: estimates read it later.
        """
