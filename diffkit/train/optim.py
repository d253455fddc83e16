"""The update: clip by the global norm and Adam, as one pass over flat memory, and nothing where a number is not finite.

The fused kernels of torch divide the gradient by a scale and skip everything on a flag, both read on the device. So
clipping needs no pass of its own, and a bad gradient stops before the weights without the host waiting for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from . import settings as told
from .flat import Flat


class Update:
    """Adam or AdamW on the parameters of `flat`.

    `bad` is 0, or 1 from the first gradient on that was not finite: then no update changes anything any more.
    With `scaling` (fp16) the loss is multiplied by `scale`; a gradient that overflows is skipped and halves it, and
    after 2000 good ones in a row it doubles.
    """

    GROWTH = 2000
    FLOOR = 2.0**-10

    def __init__(self, settings: told.Optimizer, clip: float | None, flat: Flat, *, scaling: bool = False) -> None:
        self.flat, self.clip = flat, clip
        device = flat.values.device
        self._parameter = nn.Parameter(flat.values)
        self._parameter.grad = flat.gradient
        kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        self._adam = kind(
            [self._parameter],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._moments = {"exp_avg": torch.zeros_like(flat.values), "exp_avg_sq": torch.zeros_like(flat.values)}
        self._count = torch.zeros((), device=device)
        self._adam.state[self._parameter] = {"step": self._count, **self._moments}
        self.bad = torch.zeros((), device=device)
        self.scaling = scaling
        self.scale = torch.full((), 2.0**16 if scaling else 1.0, device=device)
        self._good = torch.zeros((), device=device)

    def __call__(self, lr: float) -> Tensor:
        """One update from the gathered gradient; returns its norm, before clipping and unscaled: ()."""
        norm: Tensor = torch.linalg.vector_norm(self.flat.gradient).float()
        if self.scaling:
            norm = norm / self.scale
        skip = (~torch.isfinite(norm)).float()
        divisor = self.scale if self.clip is None else self.scale * (norm / self.clip).clamp(min=1.0)
        if self.scaling:
            self._rescale(skip)
        else:
            self.bad.copy_(torch.maximum(self.bad, skip))
        self._adam.grad_scale = divisor if self.scaling or self.clip else None  # type: ignore[attr-defined]
        self._adam.found_inf = torch.maximum(self.bad, skip)  # type: ignore[attr-defined]
        self._adam.param_groups[0]["lr"] = lr
        self._adam.step()
        return norm

    @property
    def done(self) -> int:
        """How many updates changed the weights; waits for the device."""
        return int(self._count)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the moments by the names of the parameters, and the counts."""
        named = {
            f"{name}.{moment}": view
            for moment, buffer in self._moments.items()
            for name, view in self.flat.views(buffer).items()
        }
        return {**named, "step": self._count, **({"scale": self.scale, "good": self._good} if self.scaling else {})}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors()` gave."""
        for name, mine in self.tensors().items():
            mine.copy_(tensors[name])

    def _rescale(self, skip: Tensor) -> None:
        self._good.add_(1.0).mul_(1.0 - skip)
        grow = (self._good >= self.GROWTH).float()
        self._good.mul_(1.0 - grow)
        self.scale = self.scale * (1.0 - 0.5 * skip) * (1.0 + grow)
        self.bad.copy_(torch.maximum(self.bad, (self.scale < self.FLOOR).float()))
