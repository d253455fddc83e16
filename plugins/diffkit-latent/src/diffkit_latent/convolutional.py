"""The halves of the convolutional autoencoder of latent diffusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from diffkit.tiles import Stage

GROUPS = 32
"""Groups of a normalization."""


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1 x 1 convolution of x if the channels change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(inputs), norm(outputs)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.conv1(functional.silu(self.norm1(x)))
        inside = self.conv2(functional.silu(self.norm2(inside)))
        found: Tensor = self.shortcut(x) + inside
        return found


class Attention(nn.Module):
    """x plus attention of one head between all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(q, k, v)
        inside: Tensor = self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + inside


class Halve(nn.Module):
    """Halve each side by a convolution of stride 2; zeros are added below and on the right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return found


class Convolutional(nn.Module):
    """An encoder that halves each side `len(multipliers) - 1` times, and a decoder that doubles them again.

    Source: Rombach et al. 2022 (arXiv:2112.10752), appendix G, after Esser et al. 2021 (arXiv:2012.09841), table 7:
    residual blocks, and attention of one head in the middle of both halves.

    Args:
        channels: Channels of x.
        outputs: Channels of what the encoder returns.
        codes: Channels of what the decoder takes.
        width: Channels at the size of x.
        multipliers: Channels of each level, as multiples of `width`.
        blocks: Residual blocks of each level of the encoder; the decoder has one more.
        attention: Levels, 0 for the size of x, whose blocks are followed by attention.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        codes: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
    ) -> None:
        super().__init__()
        widths = [width * one for one in multipliers]
        inner = widths[-1]
        down: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for level, (before, after) in enumerate(pairwise([widths[0], *widths])):
            down += _level(before, after, blocks, level in attention)
            down += [Halve(after)] if level < len(widths) - 1 else []
        up: list[nn.Module] = [nn.Conv2d(codes, codes, 1), nn.Conv2d(codes, inner, 3, padding=1), *_middle(inner)]
        for level, (after, before) in reversed([*enumerate(pairwise([*widths, inner]))]):
            up += _level(before, after, blocks + 1, level in attention)
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(after, after, 3, padding=1)] if level else []
        self.factor = 2 ** (len(widths) - 1)
        end = [norm(inner), nn.SiLU(), nn.Conv2d(inner, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 1)]
        self.encoder = nn.Sequential(*down, *_middle(inner), *end)
        self.decoder = nn.Sequential(*up, norm(widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels, 3, padding=1))

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last convolution of the decoder."""
        weight = self.decoder[-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def encode(self, x: Tensor) -> Tensor:
        """Map x: (B, C, H, W) to (B, outputs, H / factor, W / factor)."""
        found: Tensor = self.encoder(x)
        return found

    def decode(self, z: Tensor) -> Tensor:
        """Map z: (B, codes, h, w) to (B, C, h * factor, w * factor)."""
        found: Tensor = self.decoder(z)
        return found

    def encoder_stages(self) -> list[Stage]:
        """Return the stages of `encode`."""
        return [*map(_stage, self.encoder)]

    def decoder_stages(self) -> list[Stage]:
        """Return the stages of `decode`."""
        return [*map(_stage, self.decoder)]


def _stage(part: nn.Module) -> Stage:
    return Stage(part, local=False) if isinstance(part, Attention) else Stage.of(part)


def norm(channels: int, groups: int = GROUPS) -> nn.GroupNorm:
    """Return a normalization of at most `groups` groups, a power of 2, whose number divides `channels`."""
    return nn.GroupNorm(math.gcd(channels, groups), channels, eps=1e-6)


def _level(inputs: int, outputs: int, blocks: int, attention: bool) -> list[nn.Module]:
    """Return the residual blocks of one level, each followed by attention if wanted."""
    found: list[nn.Module] = []
    for block in range(blocks):
        found.append(Residual(outputs if block else inputs, outputs))
        found += [Attention(outputs)] if attention else []
    return found


def _middle(channels: int) -> list[nn.Module]:
    return [Residual(channels, channels), Attention(channels), Residual(channels, channels)]
