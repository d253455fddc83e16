"""Strategies for several processes that hold all weights each."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffkit.strategy import Strategy

SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in signature(DistributedDataParallel).parameters
)
"""The option of DistributedDataParallel that synchronises buffers: its name since torch 2.13, or its earlier name."""


@dataclass(frozen=True)
class DDP(Strategy):
    """Distributed data parallel: each process holds all weights, gradients are averaged by `torch.distributed`.

    `bucket` is the size in MB of the pieces that are exchanged while the backward pass runs. Buffers of the network
    are those of each process. One process trains on whole batches, as with `single`.
    """

    bucket: Annotated[int, Field(ge=1)] = 25

    @property
    def rank(self) -> int:
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def size(self) -> int:
        return dist.get_world_size() if dist.is_initialized() else 1

    def wrap(self, module: nn.Module) -> nn.Module:
        if self.size == 1:
            return module
        options = {SYNC_BUFFERS: False, "bucket_cap_mb": self.bucket}
        return DistributedDataParallel(module, gradient_as_bucket_view=True, **options)  # type: ignore[arg-type]

    def gradient_sync(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()

    def gather(self, rows: Tensor, total: int) -> Tensor:
        if not dist.is_initialized():
            return rows
        most = -(-total // self.size)
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        counts = [total * (r + 1) // self.size - total * r // self.size for r in range(self.size)]
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


@dataclass(frozen=True)
class Auto(DDP):
    """The strategy that fits the processes that were started: `ddp`, which is `single` for one process."""
