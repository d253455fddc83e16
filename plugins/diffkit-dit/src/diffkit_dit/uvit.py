"""U-ViT: a transformer that takes noise level, label and patches as tokens, with skip connections as in a U-Net."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffkit import Network, Shape, UsageError
from diffkit.ddpm.conditions import check_text, check_vectors, text_width, vector_widths
from diffkit.ddpm.embedding import label_vectors, sinusoid
from diffkit.ddpm.fit import misfit

from .transformer import Attention, FeedForward, Size, check_input, chosen, patch_grid, patches_of, unpatch

Positive = Annotated[int, Field(ge=1)]
SIZES = {"S": Size(512, 13, 8), "M": Size(768, 17, 12), "L": Size(1024, 21, 16), "H": Size(1152, 29, 16)}


class UViT(Network):
    """Vision transformer with long skip connections: x (B, C, H, W), c_noise (B,), label (B,) long -> (B, C', H, W).

    The sinusoid of the noise level, the learned vector of the label and a linear map of each patch are tokens, to which
    learned positions are added; so is a linear map of each token of a condition `text`, and of each further vector. Of
    2 n + 1 blocks, the last n read the concatenation of the tokens with those after the mirrored block of the first n.
    A 3 x 3 conv acts on the image that the patches make.

    size      `S`, `M`, `L` or `H` of the paper: width 512, 768, 1024, 1152
    patch     side of a patch in pixels; the paper's names U-ViT-S/2 contain it
    width     width of a token, in place of that of `size`; even
    depth     number of blocks, in place of that of `size`; odd
    heads     attention heads, in place of those of `size`

    Raises: RecipeError (DK140) if the options do not fit the shape or each other; UsageError (DK040, DK041) if an input
    does not fit the network.

    Source: Bao et al. 2023 (arXiv:2209.12152), fig. 1, table 1, and the authors' code.
    Differs: the conv maps the patches, which have C channels, to the C' of the output.
    """

    law_base = {"width": 48, "depth": 3}  # noqa: RUF012 - never changed
    law_reference = ({"shape": Shape(3, 3, (32, 32)), "size": "S", "parameters": 44_255_328},)
    law_options = ({"patch": 4},)

    def __init__(
        self,
        shape: Shape,
        size: Literal["S", "M", "L", "H"] = "S",
        patch: Positive = 2,
        width: Annotated[int, Field(ge=4, multiple_of=2)] | None = None,
        depth: Positive | None = None,
        heads: Positive | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.patch = shape, patch
        rows, columns = patch_grid("u-vit", shape, patch)
        width, depth, heads = chosen(SIZES, size, width, depth, heads)
        if depth % 2 == 0:
            raise misfit(
                f"u-vit has one block in the middle, so depth is odd, got {depth}", choices=(depth - 1, depth + 1)
            )
        self.width = width
        self.enter = nn.Linear((shape.in_channels + shape.extra_channels) * patch**2, width)
        self.table = None if shape.classes is None else nn.Embedding(shape.classes + 1, width)
        self.widths = vector_widths("u-vit", shape)
        self.vectors = nn.ModuleDict({name: nn.Linear(size, width) for name, size in self.widths.items()})
        tokens = text_width(shape)
        self.read = None if tokens is None else nn.Linear(tokens, width)
        self.words = shape.conditions["text"][0] if "text" in shape.conditions else 0
        self.extra = 1 + (self.table is not None) + len(self.widths) + self.words
        self.positions = nn.Parameter(torch.empty(self.extra + rows * columns, width))
        self.blocks = nn.ModuleList(SkipBlock(width, heads, skip=i > depth // 2) for i in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, shape.in_channels * patch**2)
        self.conv = nn.Conv2d(shape.in_channels, shape.out_channels, 3, padding=1)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | None = None,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        concat: Tensor | None = None,
        **vectors: Tensor,
    ) -> Tensor:
        """Compute the output of a batch.

        Args:
            x: Scaled noisy images: (B, C, H, W), of the size of the data, as positions are learned.
            c_noise: The noise level: (B,).
            label: Classes: (B,) long; the null class by default.
            text: Tokens: (B, L, D), L as in the data; by default their positions alone are read.
            text_mask: (B, L) bool, False for tokens that are not read.
            concat: Channels beside x: (B, C', H, W); zeros by default.
            **vectors: Further conditions by name: (B, D); by default zeros.

        Returns:
            The output: (B, C', H, W).
        """
        check_input("u-vit", x, c_noise, self.shape.in_channels, self.patch, size=self.shape.size)
        check_text(text, text_mask, text_width(self.shape), len(x))
        check_vectors(vectors, self.widths, len(x))
        h = self.enter(patches_of(x, self.shape, self.patch, concat))
        first = [sinusoid(c_noise, self.width, "openai").to(h.dtype)]
        row = label_vectors(self.table, label, c_noise.shape)
        if row is not None:
            first.append(row.expand(len(x), -1))
        for name, layer in self.vectors.items():
            value = vectors[name] if name in vectors else h.new_zeros(len(x), self.widths[name])
            first.append(layer(value.reshape(len(x), -1).to(h.dtype)))
        words = h.new_zeros(len(x), self.words, self.width)
        if self.read is not None and text is not None:
            if text.shape[1] != self.words:
                message = f"network u-vit learned positions for {self.words} tokens of text, got {text.shape[1]}"
                raise UsageError(message, code="DK041", fix="fill the text up to this length, and pass text_mask")
            words = self.read(text.to(h.dtype))
        h = torch.cat([torch.stack(first, dim=1), words, h], dim=1) + self.positions
        mask = None
        if text_mask is not None:
            mask = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
            mask[:, len(first) : self.extra] = text_mask
            mask = mask[:, None, None]
        skips: list[Tensor] = []
        for block in self.blocks:
            h = block(h, skips.pop() if block.skip is not None else None, mask)
            if len(skips) < len(self.blocks) // 2 and block.skip is None:
                skips.append(h)
        h = self.leave(self.norm(h))[:, self.extra :]
        out: Tensor = self.conv(unpatch(h, x.shape[3] // self.patch, self.patch))
        return out


class SkipBlock(nn.Module):
    """One block of U-ViT: x + attention(norm(x)), then x + mlp(norm(x)); with a skip, x starts as W [x, skip].

    Source: Bao et al. 2023 (arXiv:2209.12152), sec. 3.1.
    """

    def __init__(self, width: int, heads: int, skip: bool) -> None:
        super().__init__()
        self.skip = nn.Linear(2 * width, width) if skip else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads, bias=False), FeedForward(width, tanh=False)

    def forward(self, x: Tensor, skip: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: Tokens: (B, N, width).
            skip: Those after the mirrored block: (B, N, width).
            mask: (B, 1, 1, N), False for tokens that are not read.

        Returns:
            Tokens: (B, N, width).
        """
        if self.skip is not None and skip is not None:
            x = self.skip(torch.cat([x, skip], dim=-1))
        x = x + self.attention(self.norm1(x), mask)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out
