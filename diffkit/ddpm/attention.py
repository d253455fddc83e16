"""Attention from the positions of a map to themselves or to a text: out = x + W softmax(q k' / sqrt(d)) v.

q is a linear map of the normalised x, k and v are linear maps of it or of the text, split into heads of d channels.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as fn

from .initialisation import Initialisation


class SelfAttention(nn.Module):
    """Residual self-attention over the positions of a feature map, x: (B, C, *S) -> (B, C, *S).

    One linear layer makes q, k and v. In channels_last memory the rearrangements are views, not copies.

    Source: Ho et al. 2020 (arXiv:2006.11239), appendix B: one head, at 16 x 16 and in the middle;
    heads of 64 channels: Dhariwal & Nichol 2021 (arXiv:2105.05233), section 3.1.
    """

    def __init__(self, norm: nn.GroupNorm, heads: int, init: Initialisation) -> None:
        super().__init__()
        channels = norm.num_channels
        self.heads = heads
        self.norm = norm
        self.qkv = init.layer(nn.Linear(channels, 3 * channels), pieces=3)
        self.out = init.last(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention to x: (B, C, *S) -> (B, C, *S)."""
        h = self.qkv(rearrange(self.norm(x), "b c ... -> b (...) c"))
        q, k, v = rearrange(h, "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        h = fn.scaled_dot_product_attention(q, k, v)
        h = self.out(rearrange(h, "b heads n d -> b n (heads d)"))
        out: Tensor = x + rearrange(h, "b n c -> b c n").unflatten(2, x.shape[2:])
        return out


class CrossAttention(nn.Module):
    """Residual attention from the positions of a feature map to the tokens of a text, x: (B, C, *S) -> (B, C, *S).

    Without a text x is unchanged. Tokens whose mask is False are not read.

    Source: Rombach et al. 2022 (arXiv:2112.10752), sec. 3.3. Differs: after the self-attention of a map, with no
    feed-forward layer.
    """

    def __init__(self, norm: nn.GroupNorm, heads: int, width: int, init: Initialisation) -> None:
        super().__init__()
        channels = norm.num_channels
        self.heads = heads
        self.norm = norm
        self.q = init.layer(nn.Linear(channels, channels))
        self.kv = init.layer(nn.Linear(width, 2 * channels), pieces=2)
        self.out = init.last(nn.Linear(channels, channels))

    def forward(self, x: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        """Let each position attend to the text.

        Args:
            x: The map: (B, C, *S).
            text: Tokens: (B, L, D); None for no text.
            mask: (B, L) bool, False for tokens that are not read; None if all are read.

        Returns:
            The map: (B, C, *S).
        """
        if text is None:
            return x
        h = self.q(rearrange(self.norm(x), "b c ... -> b (...) c"))
        q = rearrange(h, "b n (heads d) -> b heads n d", heads=self.heads)
        k, v = rearrange(self.kv(text.to(h.dtype)), "b l (two heads d) -> two b heads l d", two=2, heads=self.heads)
        h = fn.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        h = self.out(rearrange(h, "b heads n d -> b n (heads d)"))
        out: Tensor = x + rearrange(h, "b n c -> b c n").unflatten(2, x.shape[2:])
        return out
