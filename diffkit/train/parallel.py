"""The computation of a loss as one module, so that it can be run on one process or on many alike."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from inspect import signature

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..denoiser import Model
from ..noise import Draws
from ..objective import Loss, Objective
from .distributed import World

SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in signature(DistributedDataParallel).parameters
)
"""The option of torch 2.13 and later, and what it was called before: each rank's buffers are its own."""


class _Loss(nn.Module):
    """Holds all that learns, so that one forward of it is one loss, however often an objective asks the network."""

    def __init__(self, objective: Objective, network: nn.Module, components: nn.ModuleDict) -> None:
        super().__init__()
        self.network, self.components = network, components
        self._objective = (objective,)  # in a tuple: an objective that is a module is among the components

    def forward(self, model: Model, x0: Tensor, noise: Draws, ema: Model | None, cond: Mapping[str, Tensor]) -> Loss:
        return self._objective[0](model, x0, noise, ema=ema, **cond)


class Computation:
    """The loss of a part of the batch. Over several processes gradients are averaged in the last part of a step."""

    def __init__(self, objective: Objective, network: nn.Module, components: nn.ModuleDict, world: World) -> None:
        loss = _Loss(objective, network, components)
        self._loss: nn.Module = loss
        self._parallel: DistributedDataParallel | None = None
        if world.size > 1:
            self._parallel = DistributedDataParallel(loss, gradient_as_bucket_view=True, **{SYNC_BUFFERS: False})  # type: ignore[arg-type]
            self._loss = self._parallel

    def __call__(self, model: Model, x0: Tensor, noise: Draws, ema: Model | None, cond: Mapping[str, Tensor]) -> Loss:
        return self._loss(model, x0, noise, ema, cond)  # type: ignore[no-any-return]

    def part(self, last: bool) -> AbstractContextManager[None]:
        """The context of one part: forward and backward belong inside."""
        if self._parallel is None or last:
            return contextlib.nullcontext()
        return self._parallel.no_sync()
