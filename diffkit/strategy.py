"""Strategies: training of one network by several processes, each on a share of every batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn


class Strategy(ABC):
    """Base of strategies, which distribute training over `size` processes; this process is number `rank`.

    The gradient of a parameter after a synchronised backward pass is the mean over the processes, so that the same
    update follows on each of them.
    """

    @property
    @abstractmethod
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of processes."""

    def prepare(self, network: nn.Module) -> nn.Module:
        """Prepare a network, or a copy of it that holds an average, before an optimizer is built; return it.

        A strategy that shards weights replaces the parameters of the network here. Default: the network is unchanged.
        """
        return network

    @abstractmethod
    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module to call instead of `module`, whose parameters are those that are trained."""

    @abstractmethod
    def gradient_sync(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Return the context of one forward and backward pass of the wrapped `module`.

        Gradients are exchanged in the `last` pass before an update only.
        """

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return the context in which each process may call `module` alone. All processes enter it.

        A strategy that shards weights gathers all of them here. Default: a context that does nothing.
        """
        return nullcontext()

    @abstractmethod
    def gather(self, rows: Tensor, total: int) -> Tensor:
        """Return the rows of all processes in order: (total, ...), from the rows of this process (see `shard`)."""

    def shard(self, count: int) -> range:
        """Return the rows of this process of `count` rows: consecutive, sizes differ by at most 1."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, in the same memory: all of it, unless it is sharded."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each process holds a part of the tensor, as a DTensor of torch."""
    return hasattr(tensor, "to_local")


def local_rows(tensor: Tensor) -> range | None:
    """Return the rows (indices of the first dimension) of a sharded tensor that this process holds; else None."""
    if not is_sharded(tensor):
        return None
    mesh, count = tensor.device_mesh, len(tensor)  # type: ignore[attr-defined]
    share = -(-count // mesh.size())  # as torch.chunk: the last parts may be shorter, or empty
    first = min(mesh.get_local_rank() * share, count)
    return range(first, min(first + share, count))


class SingleProcess(Strategy):
    """One process that trains on whole batches."""

    rank, size = 0, 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return `module` itself."""
        return module

    def gradient_sync(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """Return `rows` themselves."""
        return rows
