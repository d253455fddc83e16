"""The update: clip by the global norm and Adam in one pass, and nothing where a number is not finite.

The fused kernels of torch divide the gradient by a scale and skip everything on a flag, both read on the device. So
clipping needs no pass of its own, and a bad gradient stops before the weights without the host waiting for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
        self.flat, self.clip, self.settings = flat, clip, settings
        device = flat.values.device
        self._kernel = torch._fused_adamw_ if settings.name == "adamw" else torch._fused_adam_
        self._moments = {"exp_avg": torch.zeros_like(flat.values), "exp_avg_sq": torch.zeros_like(flat.values)}
        buffers = [flat.values, *self._moments.values()]
        self._operands = [[b] if flat.gathered else list(flat.views(b).values()) for b in buffers]
        self._count = torch.zeros((), device=device)
        self.bad = torch.zeros((), device=device)
        self.scaling = scaling
        self.scale = torch.full((), 2.0**16 if scaling else 1.0, device=device)
        self._good = torch.zeros((), device=device)

    def __call__(self, lr: float) -> Tensor:
        """One update from the gradients at hand; returns their norm, before clipping and unscaled: ()."""
        gradients, chosen = self.flat.take()
        norm = _norm(gradients, self.flat.values)
        if self.scaling:
            norm = norm / self.scale
        skip = (~torch.isfinite(norm)).float()
        divisor = self._divisor(norm)
        if self.scaling:
            self._rescale(skip)
        else:
            self.bad.copy_(torch.maximum(self.bad, skip))
        skip = torch.maximum(self.bad, skip)
        self._count.add_(1.0 - skip)
        weights, first, second = (
            rows if chosen is None or len(chosen) == len(rows) else [rows[index] for index in chosen]
            for rows in self._operands
        )
        if gradients:
            self._kernel(
                weights,
                gradients,
                first,
                second,
                [],
                [self._count] * len(gradients),
                lr=lr,
                beta1=self.settings.betas[0],
                beta2=self.settings.betas[1],
                weight_decay=self.settings.weight_decay,
                eps=self.settings.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
                found_inf=skip,
            )
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

    def _divisor(self, norm: Tensor) -> Tensor | None:
        """What the gradient is divided by: the loss scale, and norm / clip where that is more than 1."""
        if self.clip is None:
            return self.scale if self.scaling else None
        excess = (norm / self.clip).clamp(min=1.0)
        if self.scaling:
            return excess * self.scale
        # Dividing costs a pass. Where reading a number is free, it is left out when there is nothing to clip.
        return None if excess.device.type == "cpu" and float(excess) == 1.0 else excess

    def _rescale(self, skip: Tensor) -> None:
        self._good.add_(1.0).mul_(1.0 - skip)
        grow = (self._good >= self.GROWTH).float()
        self._good.mul_(1.0 - grow)
        self.scale.mul_((1.0 - 0.5 * skip) * (1.0 + grow))
        self.bad.copy_(torch.maximum(self.bad, (self.scale < self.FLOOR).float()))


def _norm(gradients: list[Tensor], like: Tensor) -> Tensor:
    """The norm of all of them together, in float32: ()."""
    if not gradients:
        return torch.zeros((), device=like.device)
    if len(gradients) == 1:
        return torch.linalg.vector_norm(gradients[0]).float()  # type: ignore[no-any-return]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).float()  # type: ignore[no-any-return]
