"""A network that is told the noise level on another scale."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from diffkit import Network


class ScaledTime(Network):
    """inner(x, factor c_noise). For weights that were trained on T steps and told 1000 (t - 1) / T: factor 1000 / T.

    Source: the option rescale_timesteps of Nichol & Dhariwal 2021 (arXiv:2102.09672), authors' code.
    """

    def __init__(self, inner: Network, factor: Annotated[float, Field(gt=0)] = 1.0) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """As `inner`."""
        scaled = self.factor * c_noise
        out: Tensor = self.inner(x, scaled) if label is None else self.inner(x, scaled, label=label)
        return out
