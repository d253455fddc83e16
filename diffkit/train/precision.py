"""Precision: in which type the network computes. Weights, optimizer and everything around the network stay float32."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..network import Network
from ..parameterization import Parameterization
from .config import PrecisionName, TrainConfig

MIN_WEIGHTS_BF16 = 500_000
"""From so many weights of convolutions on bf16 pays on a CPU that has it: 1.2 times as fast at 0.7 M parameters. Below,
and for vectors, the casts cost more than the products save."""


@dataclass(frozen=True)
class Precision:
    """`name` is fp32, bf16 or fp16; `dtype` is what the network runs in under autocast, None in fp32."""

    name: str
    dtype: torch.dtype | None

    @property
    def scaling(self) -> bool:
        """Whether gradients would underflow without a scaled loss."""
        return self.dtype is torch.float16


FULL = Precision("fp32", None)
BF16 = Precision("bf16", torch.bfloat16)
FP16 = Precision("fp16", torch.float16)


def choose(
    wanted: PrecisionName, device: torch.device, parameterization: Parameterization, network: nn.Module
) -> Precision:
    """The precision that `wanted` means here. auto: bf16 where the hardware has it and it pays, else fp32.

    Raises UsageError for half precision where the parameterization refuses it, or the device has none.
    """
    if parameterization.full_precision and wanted in ("bf16", "fp16"):
        raise UsageError(
            f"{type(parameterization).__name__.lower()} cannot be decoded from a network in {wanted}: "
            "the division amplifies its rounding",
            code="DK050",
            fix="train.precision: fp32 or auto, or predict eps or x0",
        )
    if wanted == "fp16":
        if device.type != "cuda":
            raise UsageError(
                f"fp16 is for CUDA devices, and this run is on the {device.type}",
                code="DK051",
                choices=("auto", "fp32", "bf16"),
                fix="train.precision: auto",
            )
        return FP16
    if wanted == "bf16":
        return BF16
    if wanted == "fp32" or parameterization.full_precision:
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


class PrecisionWrapper(Network):
    """A network under autocast; only what happens inside of it runs in low precision."""

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
"""From so many steps on, the minute or so that compilation takes should be repaid."""


def compiles(config: TrainConfig, device: torch.device) -> bool:
    """Whether the network is compiled; auto: in long runs on a CUDA device, where this machine can."""
    if config.compile != "auto":
        return config.compile
    return device.type == "cuda" and config.steps >= MIN_STEPS_COMPILED and _can_compile()


def keeps_channels_last(config: TrainConfig, device: torch.device, parameters: Iterable[Tensor]) -> bool:
    """Whether weights lie channels_last; auto: on a CUDA device, for networks with convolutions over images."""
    if config.channels_last != "auto":
        return config.channels_last
    return device.type == "cuda" and any(parameter.ndim == 4 for parameter in parameters)


def _can_compile() -> bool:
    """Kernels are written in Triton, which calls a C compiler."""
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
