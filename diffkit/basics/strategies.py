"""Strategies for several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from diffkit.network import Network
from diffkit.strategy import Strategy, is_sharded

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
class FSDP(DDP):
    """Fully sharded data parallel (FSDP2 of torch): each process holds a share of every weight, gradient, moment and
    average. The blocks of the network (`Network.block_modules`) are gathered one at a time, when they compute.

    `weights` is the type in which weights are gathered and blocks compute; gradients are summed in float32 or more.
    `offload` keeps the shares in the memory of the CPU. One process trains as with `single`.
    """

    weights: Literal["fp32", "bf16"] = "fp32"
    offload: bool = False

    def prepare(self, network: nn.Module) -> nn.Module:
        parameters = [p for p in network.parameters() if p.ndim > 0]
        if self.size == 1 or not parameters:
            return network
        _start_equal(network)
        options: dict[str, Any] = {
            "mesh": init_device_mesh(parameters[0].device.type, (self.size,)),
            "reshard_after_forward": True,  # so that the parameters of the network are the shares between steps
            "mp_policy": HALF if self.weights == "bf16" else MixedPrecisionPolicy(),
            "offload_policy": CPUOffloadPolicy() if self.offload else OffloadPolicy(),
            "ignored_params": {p for p in network.parameters() if p.ndim == 0},
        }
        blocks = network.block_modules() if isinstance(network, Network) else ()
        for block in (*blocks, network):
            fully_shard(block, **options)
        return network

    def wrap(self, module: nn.Module) -> nn.Module:
        if self.size > 1:
            _start_equal(module)
        return module

    @contextmanager
    def gradient_sync(self, module: nn.Module, last: bool) -> Iterator[None]:
        sharded = [one for one in module.modules() if isinstance(one, FSDPModule)]
        for one in sharded:
            one.set_requires_gradient_sync(last, recurse=False)
        yield
        for parameter in module.parameters() if last and self.size > 1 else ():
            if parameter.requires_grad and not is_sharded(parameter):
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(gradient)
                parameter.grad = gradient / self.size

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        sharded = [one for one in module.modules() if isinstance(one, FSDPModule)]
        for one in sharded:
            one.set_reshard_after_forward(False, recurse=False)
            one.unshard()
        try:
            yield
        finally:
            for one in sharded:
                one.set_reshard_after_forward(True, recurse=False)
                one.reshard()


HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)


def _start_equal(module: nn.Module) -> None:
    """Take the weights of the first process, as DistributedDataParallel does."""
    for parameter in module.parameters():
        if not is_sharded(parameter):
            dist.broadcast(parameter.detach(), 0)


@dataclass(frozen=True)
class Auto(DDP):
    """The strategy that fits the processes that were started: `ddp`, which is `single` for one process."""
