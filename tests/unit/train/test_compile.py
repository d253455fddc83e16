"""What a GPU is given without being asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffkit.train import precision
from diffkit.train.config import TrainConfig
from diffkit.train.precision import MIN_STEPS_COMPILED, compiles, keeps_channels_last

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
IMAGES, VECTORS = [torch.zeros(8, 3, 3, 3), torch.zeros(8)], [torch.zeros(8, 3)]


@pytest.mark.parametrize(
    ("steps", "device", "wanted", "able", "expected"),
    [
        (MIN_STEPS_COMPILED, CUDA, "auto", True, True),
        (MIN_STEPS_COMPILED - 1, CUDA, "auto", True, False),
        (MIN_STEPS_COMPILED, CPU, "auto", True, False),
        (MIN_STEPS_COMPILED, CUDA, "auto", False, False),
        (MIN_STEPS_COMPILED, CUDA, False, True, False),
        (1, CPU, True, False, True),
    ],
)
def test_long_runs_on_a_gpu_are_compiled(
    monkeypatch: pytest.MonkeyPatch, steps: int, device: torch.device, wanted: Any, able: bool, expected: bool
) -> None:
    monkeypatch.setattr(precision, "_can_compile", lambda: able)
    assert compiles(TrainConfig(steps=steps, compile=wanted), device) is expected


def test_a_machine_without_a_c_compiler_is_not_asked_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(precision.shutil, "which", lambda name: None)
    assert not compiles(TrainConfig(steps=MIN_STEPS_COMPILED), CUDA)
    monkeypatch.setattr(precision.shutil, "which", lambda name: name == "gcc" or None)
    assert compiles(TrainConfig(steps=MIN_STEPS_COMPILED), CUDA)


@pytest.mark.parametrize(
    ("parameters", "device", "wanted", "expected"),
    [
        (IMAGES, CUDA, "auto", True),
        (VECTORS, CUDA, "auto", False),
        (IMAGES, CPU, "auto", False),
        (IMAGES, CUDA, False, False),
        (IMAGES, CPU, True, True),
    ],
)
def test_images_on_a_gpu_lie_channels_last(
    parameters: list[torch.Tensor], device: torch.device, wanted: Any, expected: bool
) -> None:
    assert keeps_channels_last(TrainConfig(steps=1, channels_last=wanted), device, parameters) is expected
