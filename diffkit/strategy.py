"""Strategies: training of one network by several processes, each on a share of every batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn


class Strategy(ABC):
    """Base of strategies, which distribute a training over `size` processes; this process is number `rank`.

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

    @abstractmethod
    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module to call instead of `module`, whose parameters are those that are trained."""

    @abstractmethod
    def gradient_sync(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Return the context of one forward and backward pass of the wrapped `module`.

        Gradients are exchanged in the `last` pass before an update only.
        """

    @abstractmethod
    def gather(self, rows: Tensor, total: int) -> Tensor:
        """Return the rows of all processes in order: (total, ...), from the rows of this process (see `shard`)."""

    def shard(self, count: int) -> range:
        """Return the rows of this process of `count` rows: consecutive, sizes differ by at most 1."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)


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
