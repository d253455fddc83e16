"""The update: clip by the global norm and Adam in one pass, and nothing where a number is not finite.

The fused kernels of torch divide the gradient by a scale and skip everything on a flag, both read on the device. So
clipping needs no pass of its own, and a bad gradient stops before the weights without the host waiting for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from .config import OptimizerConfig, TrainConfig


class Update:
    """Adam or AdamW on the parameters of `flat`.

    `bad` is 0, or 1 from the first gradient on that was not finite: then no update changes anything any more.
    With `scaling` (fp16) the loss is multiplied by `scale`; a gradient that overflows is skipped and halves it, and
    after 2000 good ones in a row it doubles.
    """

    GROWTH = 2000
    FLOOR = 2.0**-10

    def __init__(self, settings: OptimizerConfig, clip: float | None, flat: Flat, *, scaling: bool = False) -> None:
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


ALIGN = 32
"""Every parameter starts at a multiple of so many numbers (128 bytes), as vector units like it."""
GATHERED = 1 << 15
"""Below this mean size of a parameter gradients are gathered: one operation then costs less than many small ones."""


class Flat:
    """Makes each parameter a view of `values`: (N,).

    Parameters keep their names and shapes; with `channels_last` those of four dimensions keep that layout. The gaps
    that alignment leaves are zero and stay so. All take one type: float64 where any has it, else float32.
    `gathered`: whether gradients are copied into one buffer as well, which is worth it where parameters are small.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        device: torch.device,
        *,
        channels_last: bool = False,
        gathered: bool | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.channels_last = channels_last
        wide = any(p.dtype == torch.float64 for p in self.parameters.values())
        self._starts: dict[str, int] = {}
        end = 0
        for name, parameter in self.parameters.items():
            self._starts[name] = end
            end += -(-parameter.numel() // ALIGN) * ALIGN
        self.values = torch.zeros(end, dtype=torch.float64 if wide else torch.float32, device=device)
        if gathered is None:
            gathered = channels_last or end < GATHERED * len(self._starts)
        self.gathered = gathered
        self._gradient = torch.zeros_like(self.values) if gathered else self.values.new_empty(0)
        self._room = list(self.views(self._gradient).values())
        for name, view in self.views(self.values).items():
            view.copy_(self.parameters[name].data)
            self.parameters[name].data = view
            self.parameters[name].grad = None

    def end(self, count: int) -> int:
        """Where the first `count` parameters end in the buffer."""
        starts = [*self._starts.values(), len(self.values)]
        return starts[count]

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The parameters' shapes laid over another buffer of this length, or of the first few parameters."""
        return {
            name: self._view(buffer, start, self.parameters[name].shape)
            for name, start in self._starts.items()
            if start < len(buffer)
        }

    def take(self) -> tuple[list[Tensor], list[int] | None]:
        """The gradients that backward left, and to which parameters they belong; None: to the whole buffer at once.

        Letting backward hand over its tensors and copying them once, where they are gathered at all, costs half of
        letting it add to prepared zeros. A parameter without a gradient counts as zero there, and is left out here.
        """
        parameters = list(self.parameters.values())
        given = [index for index, parameter in enumerate(parameters) if parameter.grad is not None]
        gradients = [parameters[index].grad for index in given]
        for index in given:
            parameters[index].grad = None
        if not self.gathered:
            return gradients, given  # type: ignore[return-value]
        if len(given) < len(parameters):
            self._gradient.zero_()
        if given:
            torch._foreach_copy_([self._room[index] for index in given], gradients)  # type: ignore[arg-type]
        return [self._gradient], None

    def _view(self, buffer: Tensor, start: int, shape: torch.Size) -> Tensor:
        flat = buffer[start : start + prod(shape)]
        if self.channels_last and len(shape) == 4:
            out, channels, height, width = shape
            return flat.view(out, height, width, channels).permute(0, 3, 1, 2)
        return flat.view(shape)


def rate(settings: TrainConfig, step: int) -> float:
    """The learning rate of the update that follows `step` updates.

    During warm-up lr (step + 1) / warmup; then lr (end + (1 - end) f(u)), where u runs from 0 at the end of the
    warm-up to 1 at the last step, and f(u) is 1, 1 - u or (1 + cos(pi u)) / 2.
    """
    lr, decay, done = settings.optimizer.lr, settings.schedule, step + 1
    if done < settings.warmup:
        return lr * done / settings.warmup
    u = min(1.0, (done - settings.warmup) / max(1, settings.steps - settings.warmup))
    if decay.name == "constant":
        return lr
    fall = 1.0 - u if decay.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * u))
    return lr * (decay.end + (1.0 - decay.end) * fall)
