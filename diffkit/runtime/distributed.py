"""Devices, and several processes on one batch through torch.distributed. In a single process every operation is free.

torchrun (also under Slurm and Kubernetes) sets RANK, WORLD_SIZE and LOCAL_RANK. Each rank trains on its rows of the
global batch. Control flags use gloo, so that they never wait for the GPU.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UsageError


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device for --device. "auto" is the CUDA device of this local rank if there is one, else the CPU.

    Raises:
        UsageError: the name is invalid, or this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", code="DK054", choices="auto, cpu, cuda, cuda:0") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if index >= count:
            message = f"device {name} is not available: this machine has {count} CUDA devices"
            raise UsageError(message, code="DK054", fix="--device cpu")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


@dataclass(frozen=True)
class Ranks:
    """The processes of a run. `control` is the gloo group of all ranks, None for a single process."""

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank. Every rank gets the same result."""
        if self.control is None:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.control)
        return bool(value)

    def sum(self, value: Tensor) -> Tensor:
        """Sum `value` over the ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.control is not None:
            dist.barrier(group=self.control)


SINGLE_PROCESS = Ranks()


def join_ranks(device: torch.device) -> Ranks:
    """Join the process group that the launcher describes; return `SINGLE_PROCESS` if there is no launcher."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return SINGLE_PROCESS
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    control = dist.new_group(backend="gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), control)


def leave_ranks(ranks: Ranks) -> None:
    """Leave the process group that `join_ranks` joined."""
    if ranks.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
