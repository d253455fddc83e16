"""Callbacks that come with diffkit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from diffkit.callback import Callback, TrainingStepInfo


@dataclass
class WeightNorms(Callback):
    """Write the norm of each parameter to weight-norms.jsonl in the run directory, every `every` steps.

    A line is {"step": k, "norms": {parameter: sqrt(sum w^2)}}, after k optimizer steps. Norms that grow without bound
    mean that the learning rate is too high or the weight decay too low; norms that stay constant mean that a parameter
    is not trained. A resumed training appends, so a step may appear twice: the later line holds.
    """

    every: Annotated[int, Field(ge=1, le=2**40)] = 100
    _path: Path | None = field(default=None, init=False, repr=False)

    def on_start(self, directory: Path) -> None:
        self._path = directory / "weight-norms.jsonl"

    def on_step(self, info: TrainingStepInfo) -> None:
        if self._path is None or info.step % self.every:
            return
        names, weights = zip(*info.model.network.named_parameters(), strict=True)
        norms = torch.stack([weight.detach().float().norm() for weight in weights]).tolist()
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": info.step, "norms": dict(zip(names, norms, strict=True))}) + "\n")
