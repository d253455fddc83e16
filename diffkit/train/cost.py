"""The cost of a training before it starts: parameters, memory, arithmetic, speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .engine import Engine
from .trainer import Trainer

STEPS = 5
BUDGET = 10.0
"""Seconds that the timed steps may take."""


@dataclass(frozen=True)
class Cost:
    """The cost of a training.

    Attributes:
        parameters: number of weights that are trained.
        state: bytes of weights, gradients, optimizer, averages and data in memory.
        activations: bytes that the backward pass needs at the peak of a step.
        flops: floating-point operations of one image, forward and backward.
        images_per_second: speed of the training.
        checkpoint: bytes of one checkpoint.
    """

    parameters: int
    state: int
    activations: int
    flops: int
    images_per_second: float
    checkpoint: int

    @property
    def memory(self) -> int:
        """Bytes at the peak of a step."""
        return self.state + self.activations

    def seconds(self, steps: int, batch_size: int) -> float:
        """Return how many seconds `steps` steps take."""
        return steps * batch_size / self.images_per_second


def cost_of_run(trainer: Trainer, steps: int = STEPS, budget: float = BUDGET) -> Cost:
    """Measure the cost by training: one image to count FLOPs and bytes, then timed steps. Do not use the trainer
    afterwards.

    Args:
        trainer: a trainer at step 0.
        steps: number of timed steps, with as many images as one part of the batch.
        budget: seconds that these steps may take; with fewer images if they would take longer.

    Returns:
        The cost.
    """
    engine = trainer.engine
    source = engine.batch_source(0, workers=0)
    part = len(engine.parts[0])

    def gradient(count: int) -> None:
        engine.gradient(0, source, [range(engine.rows.start, engine.rows.start + count)])

    gradient(1)
    engine.apply(0)  # creates the state of the optimizer
    held = _Held(engine)
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(held.keep, _same):
        gradient(1)
    single = _time(engine.device, lambda: gradient(1), 1)
    count = max(1, min(part, int(budget / steps / single)))
    gradient(count)
    images = _time(engine.device, lambda: gradient(count), steps) / count
    update = _time(engine.device, lambda: engine.apply(0), 1)
    checkpoint = sum(t.numel() * t.element_size() for group in engine.tensors().values() for t in group.values())
    return Cost(
        parameters=sum(p.numel() for p in engine.trained.values()),
        state=held.state,
        activations=held.activations * part,
        flops=counter.get_total_flops(),
        images_per_second=trainer.config.batch_size / (images * len(engine.rows) + update),
        checkpoint=checkpoint,
    )


class _Held:
    """Sums the memory that autograd keeps for the backward pass, each storage once, without weights and buffers."""

    def __init__(self, engine: Engine) -> None:
        storages = [tensor.untyped_storage() for tensor in engine.stored_tensors()]
        self._known = {storage.data_ptr(): storage.nbytes() for storage in storages}
        gradients = sum(parameter.numel() * parameter.element_size() for parameter in engine.trained.values())
        self.state = sum(self._known.values()) + gradients
        self._seen: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def activations(self) -> int:
        """Bytes that are kept."""
        return sum(self._seen.values())


def _time(device: torch.device, action: Callable[[], object], times: int) -> float:
    """Return the mean seconds of one `action`."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        action()
    _wait(device)
    return max((time.perf_counter() - began) / times, 1e-9)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
