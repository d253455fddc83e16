"""The strategy that shards weights over processes. A file of its own, because its imports take two CPU seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from diffkit.network import Network
from diffkit.strategy import is_sharded

from .strategies import DDP

HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)


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


def _start_equal(module: nn.Module) -> None:
    """Take the weights of the first process, as DistributedDataParallel does."""
    for parameter in module.parameters():
        if not is_sharded(parameter):
            dist.broadcast(parameter.detach(), 0)
