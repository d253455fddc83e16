"""The classifier of noisy examples, whose gradient guides a diffusion to a class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .level import Level, broadcast
from .schedule import Schedule


@dataclass(frozen=True)
class Classifier:
    """The logits of classes of noisy examples: the mean over positions of the output of a network with K channels.

    `network` is an `nn.Module` with `forward(x, c_noise)`, x: (B, C, *S) at scale 1, c_noise: (B,) float32, the index
    of `schedule`. Levels may have any scale; those beyond the ends of the schedule count as the ends.
    """

    network: nn.Module
    schedule: Schedule

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Compute the logits of noisy examples.

        Args:
            x: Noisy examples at `level`: (B, C, *S).
            level: A level of floats or of tensors (B,).

        Returns:
            (B, K) in the dtype of x.
        """
        c_noise = torch.as_tensor(self.schedule.index(self.schedule.time(level)), dtype=torch.float32, device=x.device)
        if getattr(self.network, "integer_time", False):
            c_noise = c_noise.round()
        weight = next((p for p in self.network.parameters() if p.is_floating_point()), x)
        z = (x / broadcast(level.scale, x)).to(weight.dtype)
        logits: Tensor = self.network(z, c_noise.expand(len(x)))
        return logits.flatten(2).mean(2).to(x.dtype) if logits.ndim > 2 else logits.to(x.dtype)
