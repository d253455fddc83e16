"""Dropout draws from the global generators, which are seeded anew for each part of each step."""

from __future__ import annotations

import torch

from ..noise import key


def seed_dropout(device: torch.device, seed: int, step: int, rank: int, part: int) -> None:
    """Seed what dropout draws from on this device: a function of its arguments and nothing else."""
    number = key(seed, "dropout", step, rank, part)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(number)
