"""Importance sampling of times by the second moment of the loss."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diffkit import Schedule, Times


class Importance(nn.Module, Times):
    """Importance sampling of times by the size of the loss.

    p(t) = (1 - uniform) sqrt(E[L_t^2]) / sum + uniform / T, with E the mean over the last `history` losses at each t.

    Uniform until every t has `history` losses. The loss of an example is divided by T p(t), so that its mean is that
    of uniform times. A continuous schedule is divided into `parts` equal parts, each drawn from uniformly.
    All computation runs on the device of the losses without synchronisation. The memory is in buffers: it is saved
    with the checkpoint, and is equal on all ranks, as each rank receives the losses of the whole global batch. Losses
    that are not finite are skipped. Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 18; `uniform`: their code.
    """

    memory: Tensor
    seen: Tensor

    def __init__(
        self,
        schedule: Schedule,
        history: Annotated[int, Field(ge=1)] = 10,
        uniform: Annotated[float, Field(gt=0, le=1)] = 0.001,
        parts: Annotated[int, Field(ge=2)] = 100,
    ) -> None:
        super().__init__()
        self.schedule, self.history, self.uniform = schedule, history, uniform
        self.parts = schedule.steps or parts
        # The last column receives the losses to drop: selecting the others would wait for the device.
        self.register_buffer("memory", torch.zeros(self.parts, history + 1, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(self.parts, dtype=torch.long))

    def draw(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        ends = self._cumulative().to(uniform.device)
        # 1 - u lies in (0, 1], as times do.
        place = 1.0 - uniform.double()
        part = torch.searchsorted(ends, place.contiguous()).clamp(1, self.parts) - 1
        inside = (place - ends[part]) / (ends[part + 1] - ends[part])
        fraction = ((part + inside) / self.parts).clamp(max=1.0)
        if schedule.steps is not None:
            # If parts and steps coincide, no rounding may move a time to the next step.
            t = part + 1 if schedule.steps == self.parts else torch.ceil(fraction * schedule.steps).long()
            return t.clamp(1, schedule.steps)
        return schedule.t_clean + (schedule.t_noise - schedule.t_clean) * fraction

    def correction(self, t: Tensor, schedule: Schedule) -> Tensor:
        """Return 1 / (T p(t)) on discrete schedules, 1 / density on others: (B,)."""
        ends = self._cumulative().to(t.device)
        if schedule.steps is not None:
            return 1.0 / (
                schedule.steps * (self._below(t, schedule.steps, ends) - self._below(t - 1, schedule.steps, ends))
            )
        fraction = (t.double() - schedule.t_clean) / (schedule.t_noise - schedule.t_clean)
        part = (torch.ceil(fraction * self.parts) - 1).clamp(0, self.parts - 1).long()
        return 1.0 / (self.parts * (ends[part + 1] - ends[part]))

    def update(self, t: Tensor, each: Tensor) -> None:
        with torch.no_grad():
            part, loss = self._part(t).to(self.seen.device), each.to(self.memory)
            order = torch.argsort(part, stable=True)
            part, loss = part[order], loss[order]
            first, last = (torch.searchsorted(part, part, right=right) for right in (False, True))
            known = torch.isfinite(loss)
            valid = known.long().cumsum(0)
            before = torch.where(first > 0, valid[(first - 1).clamp(min=0)], 0)
            rank, total = valid - 1 - before, valid[last - 1] - before
            keep = known & (total - rank <= self.history)
            slot = torch.where(keep, (self.seen[part] + rank) % self.history, self.history)
            self.memory.index_put_((part, slot), torch.where(keep, loss, 0.0))
            self.seen.index_add_(0, part, known.long())

    def probabilities(self) -> Tensor:
        """Compute the probability of each part: (parts,) float64, sum 1."""
        size = self.memory[:, : self.history].square().mean(1).sqrt()
        total = size.sum()
        ready = (self.seen >= self.history).all() & (total > 0)
        even = 1.0 / self.parts
        learned = (1.0 - self.uniform) * size / torch.where(total > 0, total, 1.0) + self.uniform * even
        return torch.where(ready, learned, torch.full_like(learned, even))

    def _cumulative(self) -> Tensor:
        """Compute the cumulative probability before each part: (parts + 1,), from 0 to 1."""
        sums = self.probabilities().cumsum(0)
        return torch.cat([torch.zeros_like(sums[:1]), sums / sums[-1]])

    def _below(self, t: Tensor, steps: int, ends: Tensor) -> Tensor:
        """Compute the cumulative probability up to time t of a schedule of `steps` steps."""
        place = t.double() * (self.parts / steps)
        part = place.floor().clamp(0, self.parts - 1).long()
        return ends[part] + (place - part) * (ends[part + 1] - ends[part])

    def _part(self, t: Tensor) -> Tensor:
        """Return the part of `self.schedule` that contains t."""
        if self.schedule.steps is not None:
            return (t.long() - 1).clamp(0, self.parts - 1)
        fraction = (t.double() - self.schedule.t_clean) / (self.schedule.t_noise - self.schedule.t_clean)
        return (torch.ceil(fraction * self.parts) - 1).clamp(0, self.parts - 1).long()
