"""Parameters in one buffer, so that clipping, the optimizer and an average are one pass each over the memory."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

ALIGN = 32
"""Every parameter starts at a multiple of so many numbers (128 bytes), as vector units like it."""


class Flat:
    """Makes each parameter a view of `values`: (N,), and keeps room for their `gradient`: (N,).

    Parameters keep their names and shapes; with `channels_last` those of four dimensions keep that layout. The gaps
    that alignment leaves are zero and stay so. All take one type: float64 where any has it, else float32.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], device: torch.device, *, channels_last: bool = False
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
        self.gradient = torch.zeros_like(self.values)
        self._gradients = list(self.views(self.gradient).values())
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

    def gather(self) -> None:
        """Move the gradients that backward left into `gradient`; a parameter without one counts as zero.

        Letting backward hand over its tensors and copying them once costs half of letting it add to prepared zeros.
        """
        given, room = [], []
        for parameter, view in zip(self.parameters.values(), self._gradients, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                given.append(parameter.grad)
                room.append(view)
                parameter.grad = None
        if given:
            torch._foreach_copy_(room, given)

    def _view(self, buffer: Tensor, start: int, shape: torch.Size) -> Tensor:
        flat = buffer[start : start + prod(shape)]
        if self.channels_last and len(shape) == 4:
            out, channels, height, width = shape
            return flat.view(out, height, width, channels).permute(0, 3, 1, 2)
        return flat.view(shape)
