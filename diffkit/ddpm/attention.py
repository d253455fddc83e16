"""Self-attention over the pixels of a map: out = x + W softmax(q k' / sqrt(d)) v.

q, k and v are linear maps of the normalised x, split into one or several heads of d channels.
"""

from __future__ import annotations

from einops import rearrange
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
        """Apply attention to x: (B, C, H, W) -> (B, C, H, W)."""
        h = self.qkv(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        q, k, v = rearrange(h, "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        h = fn.scaled_dot_product_attention(q, k, v)
        h = self.out(rearrange(h, "b heads n d -> b n (heads d)"))
        out: Tensor = x + rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])
        return out
