"""Strategies for several processes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from inspect import signature

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffkit.errors import UsageError
from diffkit.strategy import SingleProcess, Strategy

SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in signature(DistributedDataParallel).parameters
)
"""The option of DistributedDataParallel that synchronises buffers: its name since torch 2.13, or the one before."""


@dataclass(frozen=True)
class DDP(Strategy):
    """Distributed data parallel: each process holds all weights, gradients are averaged by `torch.distributed`.

    `bucket` is the size in MB of the pieces that are exchanged while the backward pass runs. Buffers of the network
    are those of each process. Raises UsageError DK057 if the processes were not started by torchrun.
    """

    bucket: int = 25

    @property
    def rank(self) -> int:
        _require_processes()
        return dist.get_rank()

    @property
    def size(self) -> int:
        _require_processes()
        return dist.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        options = {SYNC_BUFFERS: False, "bucket_cap_mb": self.bucket}
        return DistributedDataParallel(module, gradient_as_bucket_view=True, **options)  # type: ignore[arg-type]

    def gradient_sync(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        assert isinstance(module, DistributedDataParallel)
        return nullcontext() if last else module.no_sync()

    def gather(self, rows: Tensor, total: int) -> Tensor:
        most = -(-total // self.size)
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        counts = [total * (r + 1) // self.size - total * r // self.size for r in range(self.size)]
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def _require_processes() -> None:
    if not dist.is_initialized():
        raise UsageError(
            "train.strategy ddp requires several processes, but this process was started alone",
            code="DK057",
            fix="start with torchrun --nproc-per-node N -m diffkit run ..., or set train.strategy: auto",
        )


@dataclass(frozen=True)
class Auto(Strategy):
    """`single` for one process, `ddp` for several."""

    @cached_property
    def chosen(self) -> Strategy:
        """The strategy for the number of processes at first use."""
        return DDP() if dist.is_initialized() and dist.get_world_size() > 1 else SingleProcess()

    @property
    def rank(self) -> int:
        return self.chosen.rank

    @property
    def size(self) -> int:
        return self.chosen.size

    def wrap(self, module: nn.Module) -> nn.Module:
        return self.chosen.wrap(module)

    def gradient_sync(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        return self.chosen.gradient_sync(module, last)

    def gather(self, rows: Tensor, total: int) -> Tensor:
        return self.chosen.gather(rows, total)
