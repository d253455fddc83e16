"""The order of examples: a stateless function of the seed, so that a resumed run needs nothing but its step."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..errors import DataError
from ..noise import generator


class Order:
    """Which example is row r of step k: position k batch + r of an endless list of permutations, one an epoch.

    A batch at the end of an epoch is filled from the next, so no example is left out, and a data set smaller than a
    batch is repeated. World size and micro-batches do not enter. Raises DataError where there are no examples.
    """

    def __init__(self, count: int, batch_size: int, seed: int, device: torch.device | str = "cpu") -> None:
        if count < 1:
            raise DataError("there are no examples to train on", code="DK320", fix="look at the data set's folder")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.device = torch.device(device)
        self._epochs: dict[int, Tensor] = {}

    def rows(self, step: int, start: int, stop: int) -> Tensor:
        """Indices: (stop - start,) long, on the device, of these rows of the global batch of a step."""
        position, missing = step * self.batch_size + start, stop - start
        parts = []
        while missing:
            epoch, at = divmod(position, self.count)
            part = self._permutation(epoch)[at : at + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            # Drawn on the CPU whatever the device, so that the order is the same everywhere.
            order = torch.randperm(self.count, generator=generator("cpu", self.seed, "order", epoch))
            if self.device.type == "cuda":
                order = order.pin_memory().to(self.device, non_blocking=True)
            kept = max(2, self.batch_size // self.count + 2)
            while len(self._epochs) >= kept:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = order
        return self._epochs[epoch]


def divide(start: int, stop: int, parts: int) -> list[range]:
    """`parts` consecutive ranges that cover [start, stop), their lengths differing by one at most; none is empty."""
    total = stop - start
    bounds = [start + total * part // parts for part in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(bounds) if b > a]
