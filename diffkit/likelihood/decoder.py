"""Decoders: the distribution of the data given the last latent of the chain."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import UsageError
from ..level import broadcast
from ..scalar import Scalar, exp, log
from .chain import wide

LOG_2PI = math.log(2.0 * math.pi)
Cdf = Literal["exact", "tanh"]


class Decoder(ABC):
    """Base of decoders p(x0 | z_1), independent over the dimensions. Implement `log_prob`."""

    of_latent = False
    """Whether the mean is z_1 / alpha_1 and the standard deviation sigma_1 / alpha_1, not those of the model."""

    @abstractmethod
    def log_prob(self, x0: Tensor, mean: Tensor, std: Scalar) -> Tensor:
        """Compute the log of the probability or density of each element.

        Args:
            x0: Clean data: (B, *S).
            mean: Mean of x0: (B, *S).
            std: Standard deviation: a float, or a tensor that broadcasts to x0.

        Returns:
            One value per element, in nats: (B, *S).
        """

    def check(self, x0: Tensor) -> None:  # noqa: B027 - a density takes any data
        """Raise UsageError (DK521) if x0: (B, *S) has values that the decoder cannot have; default: any value."""


@dataclass(frozen=True)
class Density(Decoder):
    """The normal density N(x0; mean, std^2), for continuous data."""

    def log_prob(self, x0: Tensor, mean: Tensor, std: Scalar) -> Tensor:
        std = broadcast(std, x0)
        return -0.5 * ((x0 - mean) / std) ** 2 - log(std) - 0.5 * LOG_2PI


@dataclass(frozen=True)
class Discretised(Decoder):
    """The probability of the bin of x0 under N(mean, std^2); the first and the last bin are open.

    P(k) = F((x_k + h - mean) / std) - F((x_k - h - mean) / std) with h = 1 / (bins - 1). With the exact F it is
    computed as a difference of logarithms on the side of the smaller tail, so that no probability underflows.
    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 13.

    bins    number of values, 256 for images
    cdf     `exact` (default), or `tanh`, the approximation 1/2 (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3)))
    floor   smallest probability; None (default) for no limit. The code of Improved DDPM uses `tanh` and 1e-12.

    Differs from that code by default: the exact cdf, and no floor.
    """

    bins: int
    cdf: Cdf = "exact"
    floor: float | None = None

    def check(self, x0: Tensor) -> None:
        check_values(x0, self.bins)

    def log_prob(self, x0: Tensor, mean: Tensor, std: Scalar) -> Tensor:
        half, std = 1.0 / (self.bins - 1), broadcast(std, x0)
        above, below = (x0 + half - mean) / std, (x0 - half - mean) / std
        first, last = x0 < -1.0 + half, x0 > 1.0 - half
        if self.cdf == "tanh":
            return self._by_tanh(above, below, first, last)
        # Mirror bins to the right of the mean, so that both tails are small numbers.
        mirror = above + below > 0
        upper, lower = torch.where(mirror, -below, above), torch.where(mirror, -above, below)
        inf = torch.full_like(upper, torch.inf)
        lower = torch.where(torch.where(mirror, last, first), -inf, lower)
        upper = torch.where(torch.where(mirror, first, last), inf, upper)
        log_upper: Tensor = torch.special.log_ndtr(upper)
        log_lower: Tensor = torch.special.log_ndtr(lower)
        gap = torch.where(torch.isinf(log_lower), -inf, log_lower - log_upper)
        found = log_upper + torch.log(-torch.expm1(gap))
        return found if self.floor is None else found.clamp(min=math.log(self.floor))

    def table(self, mean: Tensor, std: Scalar) -> Tensor:
        """Compute the probabilities of all bins, which sum to 1.

        Args:
            mean: Means: (B, *S).
            std: Standard deviation, a float or a tensor that broadcasts to `mean`.

        Returns:
            (B, *S, bins) float64.
        """
        k = torch.arange(self.bins - 1, dtype=wide(mean).dtype, device=mean.device)
        edges = (2.0 * k + 1.0) / (self.bins - 1) - 1.0
        std = wide(std) if isinstance(std, Tensor) else torch.tensor(std, dtype=edges.dtype, device=mean.device)
        u = (edges - wide(mean).unsqueeze(-1)) / std.expand(mean.shape).unsqueeze(-1)
        below, above = (_tanh_cdf(u), _tanh_cdf(-u)) if self.cdf == "tanh" else (ndtr(u), ndtr(-u))
        left = torch.diff(below, prepend=torch.zeros_like(below[..., :1]))
        right = -torch.diff(above, append=torch.zeros_like(above[..., :1]))
        # bin k lies between the edges k - 1 and k: on the right of the mean, differences of upper tails are exact
        inner = torch.where(u[..., 1:] + u[..., :-1] > 0, right[..., :-1], left[..., 1:])
        return torch.cat([below[..., :1], inner, above[..., -1:]], -1)

    def _by_tanh(self, above: Tensor, below: Tensor, first: Tensor, last: Tensor) -> Tensor:
        upper, lower = _tanh_cdf(above), _tanh_cdf(below)
        probability = torch.where(first, upper, torch.where(last, 1.0 - lower, upper - lower))
        return torch.log(probability.clamp(min=self.floor or torch.finfo(probability.dtype).tiny))


@dataclass(frozen=True)
class Categorical(Decoder):
    """The probability of x0 in proportion to the density of the latent.

    softmax over the values x_k of -(z / alpha - x_k)^2 alpha^2 / (2 sigma^2). It needs no network, and is the
    true posterior if all `bins` values are equally probable.
    Source: Kingma et al. 2021 (arXiv:2107.00630), eq. 8.
    """

    bins: int
    of_latent = True

    def check(self, x0: Tensor) -> None:
        check_values(x0, self.bins)

    def log_prob(self, x0: Tensor, mean: Tensor, std: Scalar) -> Tensor:
        k = torch.arange(self.bins, dtype=x0.dtype, device=x0.device)
        values = 2.0 * k / (self.bins - 1) - 1.0
        precision = exp(-2.0 * log(broadcast(std, x0)))
        own = -0.5 * (x0 - mean) ** 2 * precision
        wanted = precision.unsqueeze(-1) if isinstance(precision, Tensor) else precision
        every = -0.5 * (values - mean.unsqueeze(-1)) ** 2 * wanted
        return own - every.logsumexp(-1)


def check_values(x0: Tensor, bins: int) -> None:
    """Raise UsageError (DK521) unless every value of x0: (B, *S) is one of 2k / (bins - 1) - 1."""
    k = (wide(x0) + 1.0) * (bins - 1) / 2.0
    if float((k - k.round()).abs().max()) > 1e-3 or float(x0.abs().max()) > 1.0 + 1e-6:
        raise UsageError(
            f"a decoder of {bins} values requires data with the values 2k / {bins - 1} - 1",
            code="DK521",
            fix="pass the number of values of the data (DataSpec.bins), or use the decoder Density for continuous data",
        )


def ndtr(u: Tensor) -> Tensor:
    """Compute the standard normal cdf, with full relative precision in the lower tail."""
    found: Tensor = 0.5 * torch.special.erfc(-u / math.sqrt(2.0))
    return found


def _tanh_cdf(u: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (u + 0.044715 * u**3)))
