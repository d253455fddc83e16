"""Parts of transformers over patches of an image: patches and back, positions, attention, the feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as fn

from diffkit import Shape, UsageError
from diffkit.ddpm.conditions import with_concat
from diffkit.ddpm.embedding import sinusoid
from diffkit.ddpm.fit import misfit


class Size(NamedTuple):
    """A size that a paper names: width of a token, number of blocks, number of heads."""

    width: int
    depth: int
    heads: int


def chosen(sizes: Mapping[str, Size], size: str, width: int | None, depth: int | None, heads: int | None) -> Size:
    """Return the size of this name, with the numbers that replace its own.

    Args:
        sizes: The sizes of the paper.
        size: The name of one.
        width: Width of a token; None for that of the size.
        depth: Number of blocks; None for that of the size.
        heads: Number of heads; None for that of the size.

    Returns:
        The size.

    Raises:
        RecipeError: The name is unknown, or the heads do not divide the width (DK140).
    """
    if size not in sizes:
        raise misfit(f'unknown size "{size}"', choices=tuple(sizes))
    named = sizes[size]
    found = Size(width or named.width, depth or named.depth, heads or named.heads)
    if found.width % found.heads:
        fitting = [k for k in range(1, found.width + 1) if found.width % k == 0 and k <= 2 * found.heads]
        raise misfit(f"{found.heads} heads do not divide the width {found.width}", choices=tuple(fitting))
    return found


def patch_grid(name: str, shape: Shape, patch: int) -> tuple[int, int]:
    """Return the numbers of patches along height and width.

    Args:
        name: The name of the network, for the error.
        shape: The shape of the data.
        patch: Side of a patch in pixels.

    Returns:
        The patches in a column, and in a row.

    Raises:
        RecipeError: The data are not images, or patches do not tile them (DK140).
    """
    if len(shape.size) != 2:
        raise misfit(
            f"network {name} takes images, but the data has {len(shape.size)} spatial dimensions {shape.size}",
            fix="use network mlp for vectors" if not shape.size else None,
        )
    height, width = shape.size
    if height % patch or width % patch:
        fitting = [k for k in range(1, min(shape.size) + 1) if height % k == 0 and width % k == 0]
        raise misfit(f"patches of {patch} pixels do not tile images of size {shape.size}", choices=tuple(fitting))
    return height // patch, width // patch


def patches_of(x: Tensor, shape: Shape, patch: int, concat: Tensor | None) -> Tensor:
    """Divide images, and the channels beside them, into patches.

    Args:
        x: Images: (B, C, H, W), H and W divisible by `patch`.
        shape: The shape that the network was built for.
        patch: Side of a patch in pixels.
        concat: Channels beside x: (B, C', H, W); None for zeros.

    Returns:
        Patches: (B, N, (C + C') patch^2), row by row.
    """
    x = with_concat(x, concat, shape.extra_channels)
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


def check_input(
    name: str, x: Tensor, c_noise: Tensor, channels: int, patch: int, size: tuple[int, ...] | None = None
) -> None:
    """Require images of the right channels that patches tile, and one c_noise per example.

    Args:
        name: The name of the network, for the error.
        x: The images.
        c_noise: The noise levels.
        channels: The channels that the network was built for.
        patch: Side of a patch in pixels.
        size: The only height and width that the network takes; None for any.

    Raises:
        UsageError: An input does not fit (DK040).
    """
    if x.ndim != 4 or x.shape[1] != channels or c_noise.shape != x.shape[:1]:
        raise UsageError(
            f"network {name} takes x (B, {channels}, H, W) and c_noise (B,), "
            f"got {tuple(x.shape)} and {tuple(c_noise.shape)}",
            code="DK040",
            fix="pass images of the shape that the network was built for",
        )
    if size not in (None, tuple(x.shape[2:])):
        raise UsageError(
            f"network {name} learned positions for images of size {size}, got {tuple(x.shape[2:])}",
            code="DK040",
            fix="pass images of this size, or use network dit, whose positions are computed",
        )
    for side in x.shape[2:]:
        if side % patch:
            raise UsageError(
                f"network {name} requires sizes divisible by {patch}, got {side}",
                code="DK040",
                fix=f"pad or crop to {-(-side // patch) * patch}",
            )


def positions(grid: tuple[int, int], width: int, trained: tuple[int, int]) -> Tensor:
    """Compute the sine-cosine positions of patches: half of the features for the column, half for the row.

    Coordinates run from 0 to the size of the grid of training, on every grid.
    Source: Peebles & Xie 2023 (arXiv:2212.09748), sec. 3.2; Dosovitskiy et al. 2021 (arXiv:2010.11929), appendix D.4.

    Args:
        grid: Patches along height and width.
        width: Features of a patch, a multiple of 4.
        trained: The grid of training, to whose size the coordinates are scaled.

    Returns:
        Features: (patches, width) float64, row by row.
    """
    rows, columns = (torch.arange(n, dtype=torch.float64) * (base / n) for n, base in zip(grid, trained, strict=True))
    # `sinusoid` gives [cos, sin]; vision transformers use [sin, cos].
    row, column = (sinusoid(line, width // 2, "openai").roll(width // 4, 1) for line in (rows, columns))
    pair = column[None].expand(len(row), -1, -1), row[:, None].expand(-1, len(column), -1)
    return rearrange(torch.cat(pair, dim=-1), "h w d -> (h w) d")


def unpatch(tokens: Tensor, columns: int, patch: int) -> Tensor:
    """Put patches together, whose numbers are in the order of pixels.

    Args:
        tokens: Patches, row by row: (B, patches, patch^2 C).
        columns: Patches in a row.
        patch: Side of a patch in pixels.

    Returns:
        Images: (B, C, H, W).
    """
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", w=columns, p=patch, q=patch)


class Attention(nn.Module):
    """Self-attention over tokens: (B, N, width) -> (B, N, width); one linear layer makes q, k and v."""

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply attention to x: (B, N, width); mask: (B, 1, 1, N), False for tokens that are not read."""
        q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        h = fn.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out(rearrange(h, "b heads n d -> b n (heads d)"))
        return out


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, four times as wide inside: (B, N, width) -> (B, N, width)."""

    def __init__(self, width: int, tanh: bool) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = nn.GELU(approximate="tanh" if tanh else "none")

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to x: (B, N, width)."""
        out: Tensor = self.linear2(self.activation(self.linear1(x)))
        return out


class CrossAttention(nn.Module):
    """Attention from tokens to those of a text: (B, N, width), (B, L, width) -> (B, N, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let each token attend to the text.

        Args:
            x: Tokens: (B, N, width).
            text: Tokens of the text: (B, L, width).
            mask: (B, 1, 1, L), False for tokens of the text that are not read; None if all are read.

        Returns:
            Tokens: (B, N, width).
        """
        q = rearrange(self.q(x), "b n (heads d) -> b heads n d", heads=self.heads)
        k, v = rearrange(self.kv(text), "b n (two heads d) -> two b heads n d", two=2, heads=self.heads)
        h = fn.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out(rearrange(h, "b heads n d -> b n (heads d)"))
        return out
