"""Preparation: from raw examples to what diffuses, with every random choice taken from the counted streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codec import Identity
from ..errors import UsageError
from ..noise import Draws
from .task import Task


@dataclass(frozen=True)
class Preparation:
    """decode, then augment, then drop labels, then encode; held-out examples are only decoded and encoded.

    Raises UsageError where labels are to be dropped and the data has none.
    """

    task: Task

    def __post_init__(self) -> None:
        if self.task.label_dropout and self.task.data.spec.classes is None:
            raise UsageError(
                "data.label_dropout replaces labels by the null class, and this data has no labels",
                code="DK053",
                fix="leave label_dropout out, or use data with classes",
            )

    def train(self, raw: Tensor, cond: Mapping[str, Tensor], noise: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Raw x: (B, C, *S) and cond of training examples -> x0 and cond, as the objective takes them."""
        task = self.task
        x, cond = task.data.decode(raw), dict(cond)
        for index, augmentation in enumerate(task.augment):
            uniform = noise.uniform(f"augment-{index}", x, augmentation.draws)
            x, changed = augmentation(x, uniform, cond)
            cond = dict(changed)
        if task.label_dropout:
            dropped = noise.uniform("label-dropout", x) < task.label_dropout
            cond["label"] = cond["label"].masked_fill(dropped, task.data.spec.classes or 0)
        return self._encode(x, noise), cond

    def held_out(self, raw: Tensor, cond: Mapping[str, Tensor], noise: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Raw held-out examples -> x0 and cond."""
        return self._encode(self.task.data.decode(raw), noise), dict(cond)

    def _encode(self, x: Tensor, noise: Draws) -> Tensor:
        codec = self.task.codec
        if isinstance(codec, Identity):
            return x
        shape = codec.spec(self.task.data.spec).shape
        like = torch.empty((), dtype=x.dtype, device=x.device).expand(len(x), *shape)
        with torch.set_grad_enabled(torch.is_grad_enabled() and _learns(codec)):
            return codec.encode(x, noise.normal("codec", like))


def _learns(part: object) -> bool:
    return isinstance(part, torch.nn.Module) and any(p.requires_grad for p in part.parameters())
