"""Precision: the type in which the network computes. Weights, optimizer and all other computations stay float32."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UsageError
from ..network import Network
from .config import PrecisionName, TrainConfig

MIN_WEIGHTS_BF16 = 500_000
"""Number of convolution weights from which bf16 is faster on a CPU that has it: 1.2 times at 0.7 M parameters. With
fewer, and for vectors, the casts cost more than the products save."""


@dataclass(frozen=True)
class Precision:
    """The precision of the network; `dtype` is the type under autocast, None in fp32 and tf32."""

    name: str
    dtype: torch.dtype | None

    @property
    def scaling(self) -> bool:
        """Whether gradients would underflow without a scaled loss."""
        return self.dtype is torch.float16


FULL = Precision("fp32", None)
TF32 = Precision("tf32", None)
BF16 = Precision("bf16", torch.bfloat16)
FP16 = Precision("fp16", torch.float16)


def choose(wanted: PrecisionName, device: torch.device, undecodable: str | None, network: nn.Module) -> Precision:
    """Return the precision of a training. auto is bf16 if the hardware has it and it is faster, else fp32.

    Args:
        wanted: the precision that the configuration names.
        device: the device to train on.
        undecodable: what cannot be decoded from outputs in half precision, for the message; None if everything can.
        network: its size decides whether bf16 is faster on a CPU.

    Returns:
        fp32, tf32, bf16 or fp16.

    Raises:
        UsageError: the parameterization or the device does not allow half precision.
    """
    if undecodable is not None and wanted in ("tf32", "bf16", "fp16"):
        raise UsageError(
            f"{undecodable} cannot be decoded from a network in {wanted}: the division amplifies rounding errors",
            code="DK050",
            fix="train.precision: fp32 or auto, or predict eps or x0",
        )
    if wanted == "fp16":
        if device.type != "cuda":
            raise UsageError(
                f"fp16 requires a CUDA device, but this run is on {device.type}",
                code="DK051",
                choices=("auto", "fp32", "bf16"),
                fix="train.precision: auto",
            )
        return FP16
    if wanted == "bf16":
        return BF16
    if wanted == "tf32":
        return TF32
    if wanted == "fp32" or undecodable is not None:
        return FULL
    return BF16 if _pays(device, network) else FULL


def _pays(device: torch.device, network: nn.Module) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    weights = sum(parameter.numel() for parameter in network.parameters() if parameter.ndim >= 3)
    return weights >= MIN_WEIGHTS_BF16 and bool(has.get("amx_bf16") or has.get("avx512_bf16"))


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """Compute the float32 products of a CUDA device in TF32 inside, if that is the precision.

    The settings are those of the whole process, and are restored.
    """
    backends: Any = torch.backends
    settings = (backends.cuda.matmul, backends.cudnn.conv) if precision is TF32 else ()
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "tf32"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


class PrecisionWrapper(Network):
    """A network under autocast; only its own operations run in low precision."""

    def __init__(self, network: nn.Module, precision: Precision, device: torch.device) -> None:
        super().__init__()
        self.network, self.dtype, self.device_type = network, precision.dtype, device.type
        self.integer_time = bool(getattr(network, "integer_time", False))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor) -> Tensor:
        if label is not None:
            cond["label"] = label
        with torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.network(x, c_noise, **cond)  # type: ignore[no-any-return]


MIN_STEPS_COMPILED = 5_000
"""Number of steps from which the minute that compilation takes is regained."""


def compile_mode(config: TrainConfig, device: torch.device) -> str | None:
    """Return the mode of torch.compile; None if the network is not compiled.

    auto: the mode "default" in long runs on a CUDA device, if this machine can compile.
    """
    wanted = config.compile
    if wanted == "auto":
        wanted = device.type == "cuda" and config.steps >= MIN_STEPS_COMPILED and _can_compile()
    if isinstance(wanted, bool):
        return "default" if wanted else None
    return wanted


def keeps_channels_last(config: TrainConfig, device: torch.device, parameters: Iterable[Tensor]) -> bool:
    """Return whether weights are stored channels_last.

    Args:
        config: "auto" is True on a CUDA device, if there are convolutions of images.
        device: the device to train on.
        parameters: the weights of the network.

    Returns:
        True or False.
    """
    if config.channels_last != "auto":
        return config.channels_last
    return device.type == "cuda" and any(parameter.ndim == 4 for parameter in parameters)


def recompute_activations(network: nn.Module) -> None:
    """Keep only the inputs of each block of the network for the backward pass, which computes the block once more.

    Less memory for about a third more time; the gradient is the same.
    """
    for block in network.block_modules() if isinstance(network, Network) else ():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _can_compile() -> bool:
    """Return whether Triton and the C compiler that it calls are installed."""
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
