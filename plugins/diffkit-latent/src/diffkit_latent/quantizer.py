"""A codebook that follows the mean of what is assigned to each of its codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .ranks import mean_of_ranks, of_first_rank

TINY = 1e-12


class Quantizer(nn.Module):
    """Replace each vector by the nearest of `count` codes, and move the codes to the vectors.

    `shares` and `totals` are exponential averages of the share of vectors that a code receives, and of their sum
    divided by the number of all vectors; a code is total / share. A code whose share falls below `least / count` is
    dead: it becomes a vector of the batch. With several processes the averages are over the vectors of all of them;
    dead codes become vectors of rank 0.
    Source: van den Oord et al. 2017 (arXiv:1711.00937), appendix A.1; dead codes: Dhariwal et al. 2020
    (arXiv:2005.00341), sec. 3.1.

    Args:
        count: Codes.
        channels: Length of a code.
        decay: Decay of the averages for each batch.
        least: The share below which a code is dead, as a fraction of the mean share.
    """

    codes: Tensor
    shares: Tensor
    totals: Tensor

    def __init__(self, count: int, channels: int, decay: float, least: float) -> None:
        super().__init__()
        self.decay, self.least = decay, least
        for name, size in (("codes", (count, channels)), ("shares", (count,)), ("totals", (count, channels))):
            self.register_buffer(name, torch.zeros(size))
        self.restart(torch.randn(count, channels), torch.arange(count))

    def nearest(self, z: Tensor) -> Tensor:
        """Return the numbers of the nearest codes: (N, C) to (N,)."""
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            return torch.cdist(z.float(), self.codes.float(), compute_mode="use_mm_for_euclid_dist").argmin(1)

    @torch.no_grad()
    def restart(self, vectors: Tensor, rows: Tensor) -> None:
        """Set the codes with the numbers `rows`: (M,) to the first M of the vectors: (N, C), with the mean share."""
        rows = rows[: len(vectors)]
        self.codes[rows] = vectors[: len(rows)].to(self.codes)
        self.shares[rows] = 1.0 / len(self.codes)
        self.totals[rows] = self.codes[rows] / len(self.codes)

    @torch.no_grad()
    def learn(self, vectors: Tensor, chosen: Tensor, order: Tensor) -> None:
        """Update the averages and the codes.

        Args:
            vectors: What was quantized: (N, C).
            chosen: The numbers of its codes: (N,).
            order: Random numbers (N,), which choose the vectors that dead codes become.
        """
        vectors = vectors.to(self.codes)
        used = torch.zeros_like(self.shares).index_add_(0, chosen, torch.ones_like(vectors[:, 0]))
        sums = torch.zeros_like(self.totals).index_add_(0, chosen, vectors)
        for average, new in ((self.shares, used), (self.totals, sums)):
            average.lerp_(mean_of_ranks(new / len(vectors)), 1.0 - self.decay)
        self.codes.copy_(self.totals / self.shares.clamp_min(TINY)[:, None])
        dead = (self.shares < self.least / len(self.codes)).nonzero()[:, 0]
        if len(dead):
            self.restart(of_first_rank(vectors[order.argsort()]), dead)

    def perplexity(self) -> Tensor:
        """Return exp of the entropy of the shares: the number of codes if all are used equally."""
        p = self.shares / self.shares.sum()
        entropy: Tensor = torch.special.entr(p).sum()
        return entropy.exp()

    def usage(self) -> Tensor:
        """Return the share of codes that receive at least a tenth of the mean share."""
        return (self.shares >= 0.1 / len(self.codes)).float().mean()
