"""The U-Net of DDPM: down to coarse maps, a middle, and up again, with a skip connection from every map.

It takes series, images and volumes, and conditions of every kind.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as fn

from diffkit import Network, Shape, UsageError

from .attention import CrossAttention, SelfAttention
from .blocks import CONV, Down, Downsample, ResidualBlock, Time, Up, Upsample, from_patches, to_patches
from .conditions import check_text, text_width, vector_widths, with_concat
from .embedding import Embedding, Order
from .fit import check_attention, check_choices, check_heads, group_count, head_count, misfit, resolutions
from .initialisation import Initialisation, Style

Positive = Annotated[int, Field(ge=1)]
DEFAULT_ATTENTION = (16,)


class UNet(Network):
    """Residual U-Net with attention: x (B, C, H, W), c_noise (B,), label (B,) long -> (B, C', H, W).

    Series (C, L) and volumes (C, D, H, W) have convolutions of one and three dimensions. With a condition `text` each
    map with attention also attends to the tokens; every other condition (D,) is added to the embedding of the noise
    level; channels of the condition `concat` are concatenated to those of x.

    Each level of `multipliers` has half the size of the one before, and consists of `blocks` residual blocks (one more
    on the way up, each with a skip connection), followed by attention if the larger side of the map is in `attention`.
    The middle is block, attention, block at the coarsest size. The default `attention` is ignored if no map is 16 wide;
    any other size that does not occur is an error.

    channels           width of the finest level, and of the sinusoid; the embedding is four times as wide
    multipliers        width of each level, finest first, in units of `channels`
    heads              attention heads; or `head_channels`, the width of one head, instead
    middle_attention   attention in the middle
    dropout            probability, before the second conv of each block
    time               `add` the embedding in a block, or use it as `scale-shift` of the norm (FiLM)
    embedding          `ho` [sin, cos] or `openai` [cos, sin]; see `sinusoid`
    downsample         `conv-asymmetric` (TensorFlow's SAME), `conv`, `average`, or `resblock` (inside a block)
    upsample           `nearest` or `bilinear` and a conv, `transposed` conv, or `resblock`
    initialisation     `ddpm`, `ddpm-zero`, `openai` or `torch`; see `Initialisation`
    groups             groups of GroupNorm; None: at most 32, with at least four channels each
    norm_eps           added to the variance in GroupNorm
    augment            parameters per example that an augmentation passes (cond `augment`)
    patch              side of the patches whose values are the channels of the finest level: data of size S has maps of
                       size S / patch, and each layer costs about patch^2 times less for images (Luhman & Luhman 2022)

    The defaults are DDPM's for CIFAR-10: 35,746,307 parameters. For LSUN and CelebA-HQ at 256 x 256:
    multipliers (1, 1, 2, 2, 4, 4), 113,673,219 parameters.

    Raises: RecipeError (DK140) if the options do not fit the shape or each other; UsageError (DK040, DK041)
    if an input does not fit the network.

    Source: Ho et al. 2020 (arXiv:2006.11239), appendix B, and the authors' code; Luhman & Luhman 2022
    (arXiv:2207.04316), sec. 3, for `patch`.
    """

    law_base = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}  # noqa: RUF012 - never changed
    law_reference = (
        {"shape": Shape(3, 3, (32, 32)), "parameters": 35_746_307},
        {"shape": Shape(3, 3, (256, 256)), "multipliers": (1, 1, 2, 2, 4, 4), "parameters": 113_673_219},
    )
    law_options = (
        {"time": "scale-shift", "embedding": "openai", "downsample": "resblock", "upsample": "resblock"},
        {"downsample": "average", "upsample": "bilinear", "heads": 2},
        {"patch": 2},
    )

    def __init__(
        self,
        shape: Shape,
        channels: Annotated[int, Field(ge=4, multiple_of=2)] = 128,
        multipliers: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 2, 2),
        blocks: Positive = 2,
        attention: tuple[Positive, ...] = DEFAULT_ATTENTION,
        heads: Positive = 1,
        head_channels: Positive | None = None,
        middle_attention: bool = True,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        time: Time = "add",
        embedding: Order = "ho",
        downsample: Down = "conv-asymmetric",
        upsample: Up = "nearest",
        initialisation: Style = "ddpm",
        groups: Positive | None = None,
        norm_eps: Annotated[float, Field(gt=0)] = 1e-6,
        augment: Annotated[int, Field(ge=0)] = 0,
        patch: Positive = 1,
    ) -> None:
        super().__init__()
        check_choices(
            time=(time, Time),
            embedding=(embedding, Order),
            downsample=(downsample, Down),
            upsample=(upsample, Up),
            initialisation=(initialisation, Style),
        )
        sizes = resolutions(shape.size, len(multipliers), patch)
        check_attention(attention, sizes, default=DEFAULT_ATTENTION)
        check_heads(middle_attention or not set(sizes).isdisjoint(attention), heads, head_channels)
        init = Initialisation(initialisation)
        vectors = vector_widths("unet", shape)
        width, dimensions, tokens = 4 * channels, len(shape.size), text_width(shape)
        if tokens is not None and not (middle_attention or set(sizes) & set(attention)):
            raise misfit("the data has texts, but this network has no attention to read them", fix="set attention")

        def norm(channels: int) -> nn.GroupNorm:
            return nn.GroupNorm(group_count(channels, groups), channels, eps=norm_eps)

        def block(inside: int, outside: int, resample: Literal["down", "up"] | None = None) -> ResidualBlock:
            return ResidualBlock(norm(inside), norm(outside), width, dropout, time, init, resample, dimensions)

        def attentive(inside: int, outside: int, wanted: bool) -> AttentiveBlock:
            if not wanted:
                return AttentiveBlock(block(inside, outside), nn.Identity())
            count = head_count(outside, heads, head_channels)
            made = AttentiveBlock(block(inside, outside), SelfAttention(norm(outside), count, init))
            made.cross = None if tokens is None else CrossAttention(norm(outside), count, tokens, init)
            return made

        self.shape, self.patch, self.stride = shape, patch, patch * 2 ** (len(multipliers) - 1)
        self.embedding = Embedding(channels, width, embedding, shape.classes, init, augment, vectors)
        conv = CONV[dimensions]
        values = patch**dimensions
        self.enter = init.layer(conv((shape.in_channels + shape.extra_channels) * values, channels, 3, padding=1))
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

        h, skips = channels, [channels]  # channels of the map, and of the maps that are kept for the way up
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(attentive(h, channels * multiplier, sizes[level] in attention))
                h = channels * multiplier
                skips.append(h)
            if level < len(multipliers) - 1:
                self.down.append(
                    block(h, h, "down") if downsample == "resblock" else Downsample(h, downsample, init, dimensions)
                )
                skips.append(h)

        self.middle.extend([attentive(h, h, middle_attention), block(h, h)])

        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(attentive(h + skips.pop(), channels * multiplier, sizes[level] in attention))
                h = channels * multiplier
            if level > 0:
                self.up.append(block(h, h, "up") if upsample == "resblock" else Upsample(h, upsample, init, dimensions))

        self.norm = norm(h)
        self.leave = init.last(conv(h, shape.out_channels * values, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        concat: Tensor | None = None,
        **vectors: Tensor,
    ) -> Tensor:
        """Compute the output of a batch.

        Args:
            x: Scaled noisy examples: (B, C, *S), sizes divisible by patch 2^(levels - 1).
            c_noise: The noise level: (B,).
            label: Classes: (B,) long; the null class by default.
            augment: Parameters of an augmentation: (B, A); none by default.
            text: Tokens: (B, L, D); none by default.
            text_mask: (B, L) bool, False for tokens that are not read.
            concat: Channels beside x: (B, C', *S); zeros by default.
            **vectors: Further conditions by name: (B, D); nothing is added for those that are absent.

        Returns:
            The output: (B, C', *S).
        """
        self._check(x, c_noise)
        check_text(text, text_mask, text_width(self.shape), len(x))
        emb = self.embedding(c_noise, label, augment, vectors)
        h = self.enter(to_patches(with_concat(x, concat, self.shape.extra_channels), self.patch))
        skips = [h]

        def apply(step: nn.Module, h: Tensor) -> Tensor:
            more = (text, text_mask) if isinstance(step, AttentiveBlock) else ()
            out: Tensor = step(h, emb, *more)
            return out

        for step in self.down:
            h = apply(step, h)
            skips.append(h)
        for step in self.middle:
            h = apply(step, h)
        for step in self.up:
            if isinstance(step, AttentiveBlock):
                h = torch.cat([h, skips.pop()], dim=1)
            h = apply(step, h)
        return from_patches(self.leave(fn.silu(self.norm(h))), self.patch)

    def _check(self, x: Tensor, c_noise: Tensor) -> None:
        dimensions = len(self.shape.size)
        if x.ndim != 2 + dimensions or x.shape[1] != self.shape.in_channels or c_noise.shape != x.shape[:1]:
            sizes = ("L", "H, W", "D, H, W")[dimensions - 1]
            raise UsageError(
                f"network unet takes x (B, {self.shape.in_channels}, {sizes}) and c_noise (B,), "
                f"got {tuple(x.shape)} and {tuple(c_noise.shape)}",
                code="DK040",
                fix="pass examples of the shape that the network was built for",
            )
        for size in x.shape[2:]:
            if size % self.stride:
                raise UsageError(
                    f"network unet requires sizes divisible by {self.stride}, got {size}",
                    code="DK040",
                    fix=f"pad or crop to {-(-size // self.stride) * self.stride}, or use fewer multipliers",
                )


class AttentiveBlock(nn.Module):
    """A residual block, followed by attention or nothing; attention to a text if `cross` is set."""

    def __init__(self, block: ResidualBlock, attention: nn.Module) -> None:
        super().__init__()
        self.block, self.attention = block, attention
        self.cross: CrossAttention | None = None

    def forward(self, x: Tensor, emb: Tensor, text: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply block and attention.

        Args:
            x: The map: (B, C, *S).
            emb: The embedding: (B, E).
            text: Tokens: (B, L, D); none by default.
            mask: (B, L) bool, False for tokens that are not read.

        Returns:
            The map: (B, C', *S).
        """
        out: Tensor = self.attention(self.block(x, emb))
        return out if self.cross is None else self.cross(out, text, mask)
