"""What a GPU is given without being asked."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from diffkit.train import precision
from diffkit.train.config import TrainConfig
from diffkit.train.precision import MIN_STEPS_COMPILED, compile_mode, float32_products, keeps_channels_last

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
IMAGES, VECTORS = [torch.zeros(8, 3, 3, 3), torch.zeros(8)], [torch.zeros(8, 3)]


@pytest.mark.parametrize(
    ("steps", "device", "wanted", "able", "expected"),
    [
        (MIN_STEPS_COMPILED, CUDA, "auto", True, "default"),
        (MIN_STEPS_COMPILED - 1, CUDA, "auto", True, None),
        (MIN_STEPS_COMPILED, CPU, "auto", True, None),
        (MIN_STEPS_COMPILED, CUDA, "auto", False, None),
        (MIN_STEPS_COMPILED, CUDA, False, True, None),
        (1, CPU, True, False, "default"),
        (1, CPU, "max-autotune", False, "max-autotune"),
    ],
)
def test_long_runs_on_a_gpu_are_compiled(
    monkeypatch: pytest.MonkeyPatch, steps: int, device: torch.device, wanted: Any, able: bool, expected: str | None
) -> None:
    monkeypatch.setattr(precision, "_can_compile", lambda: able)
    assert compile_mode(TrainConfig(steps=steps, compile=wanted), device) == expected


def test_a_machine_without_a_c_compiler_is_not_asked_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(precision.shutil, "which", lambda name: None)
    assert not compile_mode(TrainConfig(steps=MIN_STEPS_COMPILED), CUDA)
    monkeypatch.setattr(precision.shutil, "which", lambda name: name == "gcc" or None)
    assert compile_mode(TrainConfig(steps=MIN_STEPS_COMPILED), CUDA)


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


def tf32_settings() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def test_tf32_leaves_the_process_as_it_was() -> None:
    """The settings hold inside, and are restored, after an error too."""
    before = tf32_settings()
    with float32_products(precision.TF32):
        assert tf32_settings() == ("tf32", "tf32")
    assert tf32_settings() == before
    with pytest.raises(KeyError), float32_products(precision.TF32):
        raise KeyError
    assert tf32_settings() == before
    with float32_products(precision.FULL):
        assert tf32_settings() == before


def test_training_in_tf32_sets_it_for_its_steps(toys: ModuleType) -> None:
    """On the CPU it is fp32, bit for bit."""
    seen, before = [], tf32_settings()

    def stop() -> bool:
        seen.append(tf32_settings())
        return False

    weights = []
    for name in ("fp32", "tf32"):
        made = toys.trainer(precision=name)
        made.run(stop=stop if name == "tf32" else lambda: False)
        assert made.engine.precision.name == name
        weights.append([p.detach().clone() for p in made.engine.network.parameters()])
    assert set(seen) == {("tf32", "tf32")}
    assert tf32_settings() == before
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
