"""Attention: every pixel looks at every other one.

out = x + W softmax(q k' / sqrt(d)) v, with q, k, v linear maps of the normalised x, in one or several heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as fn

from .initialisation import Initialisation


class SelfAttention(nn.Module):
    """Residual self-attention over the pixels of a map, x: (B, C, H, W) -> (B, C, H, W).

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
        """x: (B, C, H, W) -> (B, C, H, W)."""
        channels, size = x.shape[1], x.shape[2:]
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, channels // self.heads)).permute(2, 0, 3, 1, 4)
        h = fn.scaled_dot_product_attention(q, k, v)  # (B, heads, HW, C / heads)
        h = self.out(h.transpose(1, 2).flatten(2))  # (B, HW, C)
        out: Tensor = x + h.transpose(1, 2).unflatten(2, size)
        return out
