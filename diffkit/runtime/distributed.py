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
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"unknown device {name!r}", code="DK054", choices="auto, cpu, cuda, cuda:0") from error
    if device.type != "cuda":
        _require_tensors(device)
    else:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = from_launcher("LOCAL_RANK", 0) if device.index is None else device.index
        if index >= count:
            message = f"device {name} is not available: this machine has {count} CUDA devices"
            raise UsageError(message, code="DK054", fix="--device cpu")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def _require_tensors(device: torch.device) -> None:
    """Raise UsageError unless this build of torch can hold numbers on the device."""
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        message = f"device {device} is not available: this build of torch cannot compute on it"
        raise UsageError(message, code="DK054", fix="--device cpu") from error


def from_launcher(name: str, default: int) -> int:
    """Return a whole number that a launcher such as torchrun has set as an environment variable.

    Args:
        name: the variable.
        default: the number if the variable is not set.

    Returns:
        The number, at least 0.

    Raises:
        UsageError: the variable is not a whole number.
    """
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        message = f"the environment variable {name} is {text!r}, not a whole number"
        raise UsageError(message, code="DK026", fix=f"unset {name}, or start the run by torchrun")
    return int(text)


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
    """Join the process group that the launcher describes; return `SINGLE_PROCESS` if there is no launcher.

    Raises UsageError if the environment variables of the launcher are incomplete or invalid.
    """
    if from_launcher("WORLD_SIZE", 1) <= 1:
        return SINGLE_PROCESS
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except ValueError as error:
            message = f"the processes cannot join: {error}"
            raise UsageError(message, code="DK026", fix="start the run by torchrun, or unset WORLD_SIZE") from error
    control = dist.new_group(backend="gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), control)


def leave_ranks(ranks: Ranks) -> None:
    """Leave the process group that `join_ranks` joined."""
    if ranks.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
