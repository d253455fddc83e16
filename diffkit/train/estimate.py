"""What a run will need, before it starts: parameters, memory, arithmetic, speed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .engine import Engine
from .loop import Trainer

STEPS = 5


@dataclass(frozen=True)
class Estimate:
    """`parameters` that are trained; `memory` at the peak of a step in bytes: `state` (weights, gradients, optimizer,
    averages, resident data) plus `activations`; `flops` of one image forward and backward; images per second;
    `checkpoint` bytes of one checkpoint."""

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
        """How long so many steps take."""
        return steps * batch_size / self.images_per_second


def estimate_run(trainer: Trainer, steps: int = STEPS) -> Estimate:
    """Measure by training: one step under counters, then `steps` timed ones. The trainer is used up by it."""
    engine = trainer.engine
    source = engine.feed(0)
    held = _Held(engine)
    try:
        with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(held.keep, _same):
            engine.advance(0, source)
        engine.advance(1, source)
        _wait(engine.device)
        began = time.monotonic()
        for step in range(steps):
            engine.advance(2 + step, source)
        _wait(engine.device)
        seconds = (time.monotonic() - began) / steps
    finally:
        source.close()
    checkpoint = sum(t.numel() * t.element_size() for group in engine.tensors().values() for t in group.values())
    return Estimate(
        parameters=sum(p.numel() for p in engine.flat.parameters.values()),
        state=held.state,
        activations=held.peak,
        flops=counter.get_total_flops() // len(engine.rows),
        images_per_second=trainer.settings.batch_size / seconds,
        checkpoint=checkpoint,
    )


class _Held:
    """Sums what autograd keeps for the backward pass, each piece of memory once; weights are counted apart."""

    def __init__(self, engine: Engine) -> None:
        storages = [tensor.untyped_storage() for tensor in engine.storages()]
        self._known = {storage.data_ptr(): storage.nbytes() for storage in storages}
        # Backward hands over its gradients before they are gathered.
        self.state = sum(self._known.values()) + engine.flat.gradient.untyped_storage().nbytes()
        self._parts = len(engine.parts)
        self._seen: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def peak(self) -> int:
        """Bytes kept for one part of a batch."""
        return sum(self._seen.values()) // self._parts


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
