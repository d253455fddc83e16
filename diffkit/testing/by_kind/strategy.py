"""Laws of strategies. They run in one process; a strategy for several is tested in a process group of size 1."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffkit.strategy import Strategy

from ..case import Case
from ..law_registry import LawResult, NotApplicable, law

COUNTS = (1, 2, 7, 64)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Start a process group of size 1, which strategies of several processes use; the group ends with the context.

    Raises:
        NotApplicable: torch cannot start a process group on this machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = (Path(folder) / "processes").as_uri()
        try:
            dist.init_process_group("gloo", init_method=meeting_point, rank=0, world_size=1)
        except RuntimeError as error:
            raise NotApplicable(f"torch cannot start a process group: {error}") from error
        try:
            yield
        finally:
            dist.destroy_process_group()


def _network(case: Case) -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(case.normal(*parameter.shape, stream=name))
    return network


def _input(case: Case, count: int) -> Tensor:
    return case.normal(count, 4, stream="input", dtype=torch.float32)


@law(
    "strategy",
    statement="rank is in 0..size - 1, and shard(count) is a consecutive share of count rows, equal to within 1",
    source="the definition of Strategy",
    tolerance=0.0,
)
def shards(case: Case, result: LawResult) -> None:
    """The shares of all processes are the whole batch; one process has all rows."""
    strategy: Strategy = case.component
    with process_group():
        rank, size = strategy.rank, strategy.size
        result.holds(0 <= rank < size, f"rank {rank} of {size}", "0 <= rank < size")
        for count in COUNTS:
            rows = strategy.shard(count)
            inside = rows.step == 1 and 0 <= rows.start <= rows.stop <= count
            result.holds(inside, f"shard({count}) = {rows}", "consecutive rows")
            result.holds(abs(len(rows) - count / size) < 1, f"shard({count}) has {len(rows)} rows", f"{count} / {size}")


@law(
    "strategy",
    statement="gather(rows of shard(count), count) is the whole batch, in order, for one process",
    source="the definition of Strategy",
    tolerance=0.0,
)
def gathers(case: Case, result: LawResult) -> None:
    """Metrics and logs are computed from all rows, as with one process."""
    strategy: Strategy = case.component
    with process_group():
        if strategy.size != 1:
            raise NotApplicable("the test runs in several processes")
        for count in COUNTS:
            whole = case.normal(count, 2, 3, dtype=torch.float32)
            share = strategy.shard(count)
            result.compare(strategy.gather(whole[share.start : share.stop], count), whole, f"{count} rows")


@law(
    "strategy",
    statement="the wrapped network has the same parameters, outputs and gradients",
    source="the definition of Strategy",
    tolerance=1e-6,
)
def wraps(case: Case, result: LawResult) -> None:
    """A strategy changes where numbers are computed, not the numbers."""
    strategy: Strategy = case.component
    with process_group():
        network, x = _network(case), _input(case, 5)
        plain = copy.deepcopy(network)
        wrapped = strategy.wrap(network)
        kept = [any(one is p for p in wrapped.parameters()) for one in network.parameters()]
        result.holds(all(kept), "other parameters in the wrapped network", "those of the network")
        with strategy.gradient_sync(wrapped, True):
            y = wrapped(x)
            y.square().sum().backward()
        want = plain(x)
        want.square().sum().backward()
        result.compare(y, want, "outputs")
        for (name, got), expected in zip(network.named_parameters(), plain.parameters(), strict=True):
            result.holds(got.grad is not None, f"{name} has no gradient", "one")
            if got.grad is not None and expected.grad is not None:
                result.compare(got.grad, expected.grad, f"gradient of {name}")


@law(
    "strategy",
    statement="gradients of several passes are added, and synchronised in the last pass",
    source="the definition of Strategy",
    tolerance=1e-6,
)
def accumulates(case: Case, result: LawResult) -> None:
    """Micro-batches of a step give the gradient of the whole batch."""
    strategy: Strategy = case.component
    with process_group():
        network, x = _network(case), _input(case, 6)
        plain = copy.deepcopy(network)
        wrapped = strategy.wrap(network)
        for part, last in ((x[:2], False), (x[2:4], False), (x[4:], True)):
            with strategy.gradient_sync(wrapped, last):
                wrapped(part).square().sum().backward()
        plain(x).square().sum().backward()
        for (name, got), expected in zip(network.named_parameters(), plain.parameters(), strict=True):
            assert expected.grad is not None
            grad = torch.zeros_like(got) if got.grad is None else got.grad
            result.compare(grad, expected.grad, f"gradient of {name} in 3 passes")
