"""The residual block of the U-Net, and its changes of resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as fn

from .initialisation import Initialisation

CONV: Mapping[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: Mapping[int, type[nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
POOL: Mapping[int, Callable[[Tensor, int], Tensor]] = {3: fn.avg_pool1d, 4: fn.avg_pool2d, 5: fn.avg_pool3d}
"""Mean over neighbours, by the number of dimensions of a batch."""
LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
PATCHES = {
    3: ("b c (w q)", "b (c q) w"),
    4: ("b c (h p) (w q)", "b (c p q) h w"),
    5: ("b c (d o) (h p) (w q)", "b (c o p q) d h w"),
}
"""Examples, and their patches as channels, by the number of dimensions of a batch."""
Time = Literal["add", "scale-shift"]
Down = Literal["conv-asymmetric", "conv", "average", "resblock"]
Up = Literal["nearest", "bilinear", "transposed", "resblock"]


class ResidualBlock(nn.Module):
    """Residual block: x + conv(silu(norm(conv(silu(norm(x))) + W emb))), with a 1 x 1 conv on x if channels change.

    `time="scale-shift"` modulates after the second norm instead: norm(h) (1 + scale) + shift, [scale, shift] = W emb.
    `resample` changes the resolution inside the block, before its first conv and in the shortcut.

    Source: Ho et al. 2020 (arXiv:2006.11239), appendix B; scale-shift: Nichol & Dhariwal 2021 (arXiv:2102.09672),
    section 3; resampling inside: Dhariwal & Nichol 2021 (arXiv:2105.05233), section 3.1, after BigGAN.
    """

    def __init__(
        self,
        norm1: nn.GroupNorm,
        norm2: nn.GroupNorm,
        embedding: int,
        dropout: float,
        time: Time,
        init: Initialisation,
        resample: Literal["down", "up"] | None = None,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        conv = CONV[dimensions]
        inside, outside = norm1.num_channels, norm2.num_channels
        self.scale_shift, self.resample = time == "scale-shift", resample
        self.norm1, self.norm2 = norm1, norm2
        self.conv1 = init.layer(conv(inside, outside, 3, padding=1))
        pieces = 2 if self.scale_shift else 1
        self.time = init.layer(nn.Linear(embedding, pieces * outside), pieces)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = init.last(conv(outside, outside, 3, padding=1))
        self.shortcut = nn.Identity() if inside == outside else init.layer(conv(inside, outside, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Apply the block to x: (B, C, *S) with emb: (B, E) -> (B, C', *S')."""
        h = fn.silu(self.norm1(x))
        if self.resample == "down":
            h, x = POOL[x.ndim](h, 2), POOL[x.ndim](x, 2)
        elif self.resample == "up":
            h, x = fn.interpolate(h, scale_factor=2.0), fn.interpolate(x, scale_factor=2.0)
        h = self.conv1(h)
        time = self.time(emb)[(..., *[None] * (x.ndim - 2))]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(fn.silu(h)))
        out: Tensor = self.shortcut(x) + h
        return out


class Downsample(nn.Module):
    """Halve each spatial size, (B, C, H, W) -> (B, C, H/2, W/2).

    `conv-asymmetric`: 3 x 3 conv of stride 2, padded at the right and bottom only, as TensorFlow's SAME does for even
    sizes and as DDPM was trained; `conv`: padded on all sides; `average`: mean of 2 x 2.
    """

    def __init__(
        self,
        channels: int,
        kind: Literal["conv-asymmetric", "conv", "average"],
        init: Initialisation,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        self.pad = kind == "conv-asymmetric"
        self.conv = (
            None
            if kind == "average"
            else init.layer(CONV[dimensions](channels, channels, 3, stride=2, padding=0 if self.pad else 1))
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Downsample x: (B, C, *S) -> (B, C, *S/2); `emb` is not used."""
        if self.conv is None:
            return POOL[x.ndim](x, 2)
        out: Tensor = self.conv(fn.pad(x, (0, 1) * (x.ndim - 2)) if self.pad else x)
        return out


class Upsample(nn.Module):
    """Double each spatial size, (B, C, H, W) -> (B, C, 2H, 2W).

    `nearest`, `bilinear`: interpolation, then a 3 x 3 conv; `transposed`: a 4 x 4 transposed conv of stride 2.
    The code of DDPM uses nearest with align_corners=True, which picks the same pixels at factor two.
    """

    def __init__(
        self,
        channels: int,
        kind: Literal["nearest", "bilinear", "transposed"],
        init: Initialisation,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.conv: nn.Module
        if kind == "transposed":
            self.conv = init.layer(TRANSPOSED[dimensions](channels, channels, 4, stride=2, padding=1))
        else:
            self.conv = init.layer(CONV[dimensions](channels, channels, 3, padding=1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Upsample x: (B, C, *S) -> (B, C, 2 *S); `emb` is not used."""
        if self.kind != "transposed":
            x = fn.interpolate(x, scale_factor=2.0, mode=LINEAR[x.ndim] if self.kind == "bilinear" else self.kind)
        out: Tensor = self.conv(x)
        return out


def to_patches(x: Tensor, side: int) -> Tensor:
    """Make the values of each patch the channels of one position: (B, C, *S) -> (B, C side^n, *S / side)."""
    whole, divided = PATCHES[x.ndim]
    return rearrange(x, f"{whole} -> {divided}", **_sides(x, side))


def from_patches(x: Tensor, side: int) -> Tensor:
    """Put patches together, the inverse of `to_patches`: (B, C side^n, *S) -> (B, C, *S side)."""
    whole, divided = PATCHES[x.ndim]
    return rearrange(x, f"{divided} -> {whole}", **_sides(x, side))


def _sides(x: Tensor, side: int) -> dict[str, int]:
    return dict.fromkeys("opq"[5 - x.ndim :], side)
