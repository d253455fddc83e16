"""What a GPU is given without being asked: a compiled network in long runs, and the layout its convolutions like."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable

import torch
from torch import Tensor

from .settings import Settings

LONG = 5_000
"""From so many steps on, the minute or so that compilation takes should be repaid."""


def compiles(settings: Settings, device: torch.device) -> bool:
    """Whether the network is compiled; auto: in long runs on a CUDA device, where this machine can."""
    if settings.compile != "auto":
        return settings.compile
    return device.type == "cuda" and settings.steps >= LONG and _can_compile()


def keeps_channels_last(settings: Settings, device: torch.device, parameters: Iterable[Tensor]) -> bool:
    """Whether weights lie channels_last; auto: on a CUDA device, for networks with convolutions over images."""
    if settings.channels_last != "auto":
        return settings.channels_last
    return device.type == "cuda" and any(parameter.ndim == 4 for parameter in parameters)


def _can_compile() -> bool:
    """Kernels are written in Triton, which calls a C compiler."""
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
