"""Parameters in one buffer, so that the optimizer and an average are one pass each over the memory."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

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
