"""The state of a training beside its tensors: step, data, precision, and the means since the last log point."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError


@dataclass(frozen=True)
class TrainerState:
    """The state of a trainer as JSON, written and read here only.

    Attributes:
        step: number of updates done.
        window: state of the `MetricAccumulator`.
        data: fingerprint of the data.
        powers: exponent of each average by its name, in the order of the recipe; 0 for averages of another form.
        precision: precision that the network runs in: fp32, bf16 or fp16.
        device: type of the device, such as cpu.
        threads: number of threads of torch.
        numbers: the numbers in the state of the optimizer that are not tensors.
    """

    step: int
    window: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    powers: Mapping[str, float] = field(default_factory=dict)
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    numbers: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of plain values."""
        return {
            "step": self.step,
            "window": dict(self.window),
            "data": self.data,
            "averages": list(self.powers),
            "powers": list(self.powers.values()),
            "precision": self.precision,
            "device": self.device,
            "threads": self.threads,
            "numbers": dict(self.numbers),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> TrainerState:
        """Return the state that `to_json` was called on; entries that an earlier version did not write have their
        defaults.

        Raises:
            CheckpointError: the JSON is not the state of a trainer.
        """
        try:
            averages, powers = state.get("averages", []), state.get("powers", [])
            return cls(
                step=int(state["step"]),
                window=dict(state.get("window", {})),
                data=str(state.get("data", "")),
                powers={str(name): float(power) for name, power in zip(averages, powers, strict=True)},
                precision=str(state.get("precision", "fp32")),
                device=str(state.get("device", "cpu")),
                threads=int(state.get("threads", 1)),
                numbers={str(name): float(number) for name, number in state.get("numbers", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"this is not the state of a trainer: {type(error).__name__}: {error}") from error

    def differences(self, now: TrainerState) -> list[str]:
        """Return the settings in which `now` differs from this state, so that resumed weights are not equal bit for
        bit.
        """
        return [
            f"{what} was {getattr(self, what)}, is {getattr(now, what)}"
            for what in ("precision", "device", "threads")
            if getattr(self, what) != getattr(now, what)
        ]


class MetricAccumulator:
    """Means of named numbers over the steps since the last log point."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step; values: () each, on the device."""
        self.steps += 1
        for name, value in values.items():
            if name in self._sums:
                self._sums[name].add_(value)
            else:
                self._sums[name] = value.detach().double()

    def means(self) -> dict[str, float]:
        """Return the means; waits for the device."""
        if not self._sums:
            return {}
        values = torch.stack([*self._sums.values()]) / self.steps
        return dict(zip(self._sums, values.tolist(), strict=True))

    def clear(self) -> None:
        """Remove all steps."""
        self._sums, self.steps = {}, 0

    def state(self) -> dict[str, Any]:
        """Return the sums as JSON; waits for the device. A sum that is not finite is null."""
        sums = {name: float(value) for name, value in self._sums.items()}
        return {"steps": self.steps, "sums": {n: value if math.isfinite(value) else None for n, value in sums.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Load the `state()` of another accumulator."""
        self.steps = int(state["steps"])
        self._sums = {
            str(name): torch.tensor(math.nan if value is None else value, dtype=torch.float64, device=self._device)
            for name, value in state["sums"].items()
        }


def digest_of(tensors: Iterable[Tensor]) -> str:
    """Return a digest of the bits of tensors, computed on their device: two weighted sums of each, modulo 2^64."""
    sums = [torch.zeros((), dtype=torch.long)]
    for tensor in tensors:
        plain = tensor.detach().contiguous()
        bits = plain.view(-1).view(torch.int32 if plain.element_size() % 4 == 0 else torch.uint8)
        for start, part in enumerate(torch.split(bits, CHUNK)):
            weights = torch.arange(1 + start, 1 + start + len(part), device=part.device)
            sums += [(part.long() * weights).sum(), part.sum(dtype=torch.long)]
    values = torch.stack([value.to(sums[-1].device) for value in sums]).tolist()
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


CHUNK = 1 << 20
"""Numbers of one sum, which takes 16 bytes for each on the device."""
