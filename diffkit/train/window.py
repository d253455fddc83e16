"""What happened since the last log point, summed on the device, so that nothing waits for it in between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Window:
    """Means of named numbers over the steps since the last log point."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step; values: () each, on the device."""
        self.steps += 1
        for name, value in values.items():
            if name in self._sums:
                self._sums[name].add_(value)
            else:
                self._sums[name] = value.detach().double()

    def means(self) -> dict[str, float]:
        """The means; waits for the device."""
        if not self._sums:
            return {}
        values = torch.stack([*self._sums.values()]) / self.steps
        return dict(zip(self._sums, values.tolist(), strict=True))

    def clear(self) -> None:
        """Start anew."""
        self._sums, self.steps = {}, 0

    def state(self) -> dict[str, Any]:
        """As JSON; waits for the device. A sum that is not finite, as of gradients that overflowed, is null."""
        sums = {name: float(value) for name, value in self._sums.items()}
        return {"steps": self.steps, "sums": {n: value if math.isfinite(value) else None for n, value in sums.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state()` gave."""
        self.steps = int(state["steps"])
        self._sums = {
            str(name): torch.tensor(math.nan if value is None else value, dtype=torch.float64, device=self._device)
            for name, value in state["sums"].items()
        }
