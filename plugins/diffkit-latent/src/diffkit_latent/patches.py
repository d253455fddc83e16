"""The halves of an autoencoder of patches: all work is done at the size of the latents, beside a linear path."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffkit.tiles import Stage

from .convolutional import norm

GROUPS = 8
"""Groups of a normalization."""
START = 1e-2
"""The factor of the usual initial weights of layers that start near 0."""
LEAST_STD = 1e-3
"""Smallest standard deviation by which a principal component is divided, so that constant pixels stay finite."""


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); the second convolution starts near 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width, GROUPS), norm(width, GROUPS)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = near_zero(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.first(functional.silu(self.norm1(x)))
        found: Tensor = x + self.second(functional.silu(self.norm2(inside)))
        return found


class Patches(nn.Module):
    """An encoder and a decoder, each a linear map of patches plus a residual network.

    Each square of `factor` x `factor` pixels becomes the channels of one position, so no convolution works on a map
    that is larger than that of the latents. The networks start near 0, so the autoencoder starts as its linear path.

    Args:
        channels: Channels of x.
        outputs: Channels of what the encoder returns; the first `codes` are the codes.
        codes: Channels of what the decoder takes.
        factor: Pixels of x, along each side, for one position.
        width: Channels inside the networks.
        blocks: Residual blocks of each network.
    """

    def __init__(self, channels: int, outputs: int, codes: int, factor: int, width: int, blocks: int) -> None:
        super().__init__()
        self.factor, self.codes, values = factor, codes, channels * factor**2
        self.down, self.up = nn.Conv2d(values, outputs, 1), nn.Conv2d(codes, values, 1)
        self.encoder = _network(values, outputs, width, blocks)
        self.decoder = _network(codes, values, width, blocks)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last convolution of the decoder."""
        weight = self.decoder[-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def encode(self, x: Tensor) -> Tensor:
        """Map x: (B, C, H, W) to (B, outputs, H / factor, W / factor)."""
        patches = functional.pixel_unshuffle(x, self.factor)
        found: Tensor = self.down(patches) + self.encoder(patches)
        return found

    def decode(self, z: Tensor) -> Tensor:
        """Map z: (B, codes, h, w) to (B, C, h * factor, w * factor)."""
        return functional.pixel_shuffle(self.up(z) + self.decoder(z), self.factor)

    def encoder_stages(self) -> list[Stage]:
        """Return the stages of `encode`."""
        return [Stage(lambda x: functional.pixel_unshuffle(x, self.factor)), *_stages(self.down, self.encoder)]

    def decoder_stages(self) -> list[Stage]:
        """Return the stages of `decode`."""
        return [*_stages(self.up, self.decoder), Stage(lambda h: functional.pixel_shuffle(h, self.factor))]

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> str:
        """Set the linear path to the first principal components of the patches of examples, scaled to std 1.

        Without the networks the reconstruction is then the best linear one of the given number of codes.

        Args:
            batches: The examples, batch by batch: (B, C, H, W).

        Returns:
            A line about it.
        """
        mean, covariance = moments(_patches(x, self.factor) for x in batches)
        values, vectors = torch.linalg.eigh(covariance)
        count = min(self.codes, len(values))
        std = values.flip(0)[:count].clamp_min(LEAST_STD**2).sqrt()
        axes = vectors.flip(1)[:, :count]
        down, up = self.down.state_dict(), self.up.state_dict()  # the weights themselves
        down["weight"][:count] = (axes / std).T[:, :, None, None]
        down["bias"][:count] = -((axes / std).T @ mean)
        up["weight"][:, :count] = (axes * std)[:, :, None, None]
        up["bias"].copy_(mean)
        kept = float(values.flip(0)[:count].sum() / values.sum().clamp_min(LEAST_STD))
        return f"{count} principal components of {len(values)} values hold {kept:.4f} of the variance"


def _patches(x: Tensor, factor: int) -> Tensor:
    """Return the patches of x: (B, C, H, W) to (N, D) float64."""
    return functional.pixel_unshuffle(x, factor).double().movedim(1, -1).flatten(0, -2)


def moments(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute mean (D,) and unbiased covariance (D, D) of rows that come in blocks (B, D), around the mean of the first
    block, so that no digits are lost.
    """
    each = iter(blocks)
    first = next(each)
    shift, count = first.mean(0), 0
    total, product = torch.zeros_like(shift), torch.zeros(2 * shift.shape).to(first)
    for block in chain([first], each):
        centred = block - shift
        count += len(centred)
        total += centred.sum(0)
        product.addmm_(centred.T, centred)
    product.addr_(total, total, alpha=-1 / count).div_(max(1, count - 1))
    return shift + total / count, product


def _network(inputs: int, outputs: int, width: int, blocks: int) -> nn.Sequential:
    last = near_zero(nn.Conv2d(width, outputs, 3, padding=1))
    inside = [Residual(width) for _ in range(blocks)]
    return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), *inside, nn.SiLU(), last)


def _stages(linear: nn.Conv2d, network: nn.Sequential) -> list[Stage]:
    """Return the stages of linear(x) + network(x), with the output of `linear` as the first channels of each map."""
    count = linear.out_channels
    first, *inside, last = network

    def start(x: Tensor) -> Tensor:
        return torch.cat([linear(x), first(x)], 1)

    def apply(part: nn.Module, h: Tensor) -> Tensor:
        return torch.cat([h[:, :count], part(h[:, count:])], 1)

    def end(h: Tensor) -> Tensor:
        found: Tensor = h[:, :count] + last(h[:, count:])
        return found

    return [Stage(start), *(Stage(partial(apply, part), norms=Stage.of(part).norms) for part in inside), Stage(end)]


def near_zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Make the initial weights and biases of a layer small, and return the layer."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(START)
    return layer
