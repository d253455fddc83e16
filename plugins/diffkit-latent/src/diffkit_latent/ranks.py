"""What the processes of a training share, besides the gradients that the strategy averages."""

from __future__ import annotations

from torch import Tensor, distributed


def mean_of_ranks(x: Tensor) -> Tensor:
    """Return the mean of x over the processes, on each of them; x itself may be overwritten."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(x)
        x = x / distributed.get_world_size()
    return x


def of_first_rank(x: Tensor) -> Tensor:
    """Return the x of the first process, on each of them; x itself is overwritten."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast(x, 0)
    return x
