"""DiT: a transformer over patches of an image, whose blocks are modulated by the noise level and the label."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as fn

from diffkit import Network, Shape
from diffkit.ddpm.conditions import check_text, text_width, vector_widths
from diffkit.ddpm.embedding import Embedding, Order
from diffkit.ddpm.fit import check_choices, misfit
from diffkit.ddpm.initialisation import Initialisation

from .transformer import (
    Attention,
    CrossAttention,
    FeedForward,
    Size,
    check_input,
    chosen,
    patch_grid,
    patches_of,
    positions,
    unpatch,
)

Positive = Annotated[int, Field(ge=1)]
SIZES = {"S": Size(384, 12, 6), "B": Size(768, 12, 12), "L": Size(1024, 24, 16), "XL": Size(1152, 28, 16)}
FREQUENCIES = 256
"""Length of the sinusoid of the noise level, for every width."""


class DiT(Network):
    """Diffusion transformer: x (B, C, H, W), c_noise (B,), label (B,) long -> (B, C', H, W).

    A linear map makes a token of each patch, to which fixed 2-D sine-cosine positions are added. A block is
    x + gate attention(modulate(norm(x))) and x + gate mlp(modulate(norm(x))), modulate(h) = h (1 + scale) + shift.
    Scale, shift and gate are linear in the embedding of noise level and label, and start at zero, as does the output.

    size        `S`, `B`, `L` or `XL` of the paper: width 384, 768, 1024, 1152
    patch       side of a patch in pixels; the paper's names DiT-XL/2 contain it. Cost grows with 1 / patch^4
    width       width of a token, in place of that of `size`; a multiple of 4
    depth       number of blocks, in place of that of `size`
    heads       attention heads, in place of those of `size`
    embedding   `openai` [cos, sin], as in the authors' code, or `ho` [sin, cos]; see `sinusoid`
    norm_eps    added to the variance before the feed-forward layer; diffusers has 1e-5 there

    x may have another size than the data: positions are scaled to the grid of training. With a condition `text` each
    block attends to its tokens between attention and mlp, as in PixArt-alpha; other vectors are added to the embedding,
    and `concat` has more channels of x.

    Raises: RecipeError (DK140) if the options do not fit the shape or each other; UsageError (DK040, DK041) if an input
    does not fit the network.

    Source: Peebles & Xie 2023 (arXiv:2212.09748), sec. 3.2, fig. 3, table 1, and the authors' code; text: Chen et al.
    2024 (arXiv:2310.00426), sec. 2.3. Differs: the tokens that attend to a text are normalised.
    """

    law_base = {"width": 48, "depth": 2}  # noqa: RUF012 - never changed
    law_reference = ({"shape": Shape(4, 8, (32, 32), 1000), "size": "S", "parameters": 32_865_056},)
    law_options = ({"patch": 4, "embedding": "ho"},)

    def __init__(
        self,
        shape: Shape,
        size: Literal["S", "B", "L", "XL"] = "S",
        patch: Positive = 2,
        width: Annotated[int, Field(ge=4, multiple_of=4)] | None = None,
        depth: Positive | None = None,
        heads: Positive | None = None,
        embedding: Order = "openai",
        norm_eps: Annotated[float, Field(gt=0)] = 1e-6,
    ) -> None:
        super().__init__()
        check_choices(embedding=(embedding, Order))
        self.shape, self.patch, self.grid = shape, patch, patch_grid("dit", shape, patch)
        width, depth, heads = chosen(SIZES, size, width, depth, heads)
        if width % 4:
            raise misfit(f"positions of two coordinates require a width divisible by 4, got {width}")
        init, vectors, tokens = Initialisation("ddpm-zero"), vector_widths("dit", shape), text_width(shape)
        self.enter = init.layer(nn.Linear((shape.in_channels + shape.extra_channels) * patch**2, width))
        self.register_buffer("positions", positions(self.grid, width, self.grid).float(), persistent=False)
        self.embedding = Embedding(FREQUENCIES, width, embedding, shape.classes, init, vectors=vectors)
        self.read = None
        if tokens is not None:
            layers = init.layer(nn.Linear(tokens, width)), init.layer(nn.Linear(width, width))
            self.read = nn.Sequential(layers[0], nn.GELU(approximate="tanh"), layers[1])
        self.blocks = nn.ModuleList(Block(width, heads, norm_eps, init, tokens is not None) for _ in range(depth))
        self.modulation = init.last(nn.Linear(width, 2 * width))
        self.leave = init.last(nn.Linear(width, shape.out_channels * patch**2))
        for module in (self.embedding.linear1, self.embedding.linear2, self.embedding.table):
            if module is not None:
                nn.init.normal_(module.weight, std=0.02)

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
            x: Scaled noisy images: (B, C, H, W), H and W divisible by `patch`.
            c_noise: The noise level: (B,).
            label: Classes: (B,) long; the null class by default.
            text: Tokens: (B, L, D); none by default.
            text_mask: (B, L) bool, False for tokens that are not read.
            concat: Channels beside x: (B, C', H, W); zeros by default.
            **vectors: Further conditions by name: (B, D); nothing is added for those that are absent.

        Returns:
            The output: (B, C', H, W).
        """
        check_input("dit", x, c_noise, self.shape.in_channels, self.patch)
        check_text(text, text_mask, text_width(self.shape), len(x))
        emb = self.embedding(c_noise, label, vectors=vectors)
        h = self.enter(patches_of(x, self.shape, self.patch, concat))
        grid = x.shape[2] // self.patch, x.shape[3] // self.patch
        h = h + (self.positions if grid == self.grid else positions(grid, h.shape[2], self.grid).to(h))
        tokens = None if self.read is None or text is None else self.read(text.to(h.dtype))
        mask = None if text_mask is None else text_mask[:, None, None]
        for block in self.blocks:
            h = block(h, emb, tokens, mask)
        shift, scale = self.modulation(emb).chunk(2, dim=1)
        return unpatch(self.leave(modulated(h, shift, scale)), grid[1], self.patch)


class Block(nn.Module):
    """One block of DiT: attention and feed-forward layer, each modulated, and gated by a factor that starts at zero.

    With `reads` the tokens attend to a text in between, by a layer whose output starts at zero.

    Source: Peebles & Xie 2023 (arXiv:2212.09748), fig. 3, adaLN-Zero.
    """

    def __init__(self, width: int, heads: int, norm_eps: float, init: Initialisation, reads: bool) -> None:
        super().__init__()
        self.norm_eps = norm_eps
        self.modulation = init.last(nn.Linear(width, 6 * width))
        self.attention, self.mlp = Attention(width, heads), FeedForward(width, tanh=True)
        for layer in (self.attention.qkv, self.attention.out, self.mlp.linear1, self.mlp.linear2):
            init.layer(layer)
        self.cross = CrossAttention(width, heads) if reads else None
        if self.cross is not None:
            for layer in (self.cross.q, self.cross.kv):
                init.layer(layer)
            init.last(self.cross.out)

    def forward(self, x: Tensor, emb: Tensor, text: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: Tokens: (B, N, width).
            emb: The embedding: (B, width).
            text: Tokens of a text: (B, L, width); none by default.
            mask: (B, 1, 1, L), False for tokens of the text that are not read.

        Returns:
            Tokens: (B, N, width).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attention(modulated(x, shift1, scale1))
        if self.cross is not None and text is not None:
            x = x + self.cross(fn.layer_norm(x, x.shape[-1:], eps=1e-6), text, mask)
        out: Tensor = x + gate2[:, None] * self.mlp(modulated(x, shift2, scale2, self.norm_eps))
        return out


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalise tokens to mean 0 and variance 1, multiply by 1 + scale, and add shift.

    Args:
        x: Tokens: (B, N, width).
        shift: (B, width).
        scale: (B, width).
        eps: Added to the variance; default 1e-6.

    Returns:
        Tokens: (B, N, width).
    """
    out: Tensor = fn.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale[:, None]) + shift[:, None]
    return out
