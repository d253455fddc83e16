"""Inception-v3 as the Frechet Inception distance uses it: the graph of 2015, in PyTorch, and its extractor.

It differs from the network of the paper, and from other implementations of it, in pooling: averages at the border leave
the padding out, and the last block takes a maximum instead of an average. The names of the weights are those of
torch-fidelity, which converted them from TensorFlow.
Source: Szegedy et al. 2016 (arXiv:1512.00567), fig. 5 to 7; Heusel et al. 2017 (arXiv:1706.08500), sec. 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from diffkit import DataError, FilePath

from .extractor import ROUNDING, NetworkExtractor, file_hash, other_hash

SIZE = 299
CLASSES, FEATURES = 1008, 2048


def resize(x: Tensor, size: int = SIZE) -> Tensor:
    """Resize pictures (B, C, H, W) to (B, C, size, size) as TensorFlow 1 does.

    Output pixel i lies at i * H / size of the input, so that the first pixels coincide and the last one is repeated;
    interpolation is bilinear, without smoothing before a reduction. Positions are float32, as in TensorFlow.
    """
    for dim in (3, 2):  # rows first would round differently
        length = x.shape[dim]
        at = torch.arange(size, dtype=torch.float32, device=x.device) * torch.tensor(length / size, dtype=torch.float32)
        low = at.long()
        high = (low + 1).clamp_max(length - 1)
        weight = (at - low).view(-1, *([1] * (3 - dim)))
        first, second = x.index_select(dim, low), x.index_select(dim, high)
        x = first + (second - first) * weight
    return x


class Conv(nn.Module):
    """Convolution without bias, normalisation with fixed statistics, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = False):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad else 0
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = functional.relu_(self.bn(self.conv(x)))
        return out


def average(x: Tensor) -> Tensor:
    """Average 3 x 3 neighbours, at the border those that exist."""
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class MixedA(nn.Module):
    """The block of 35 x 35: kernels 1, 5, 3 after 3, and pooling."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1 = Conv(inputs, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, pad=True)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, pad=True)
        self.branch3x3dbl_3 = Conv(96, 96, 3, pad=True)
        self.branch_pool = Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(average(x))], 1)


class ReductionB(nn.Module):
    """The block that reduces maps of 35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, 2)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, pad=True)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class MixedC(nn.Module):
    """The block of 17 x 17: kernels 1 x 7 and 7 x 1, once and twice, and pooling."""

    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        wide, high = (1, 7), (7, 1)
        self.branch1x1 = Conv(inputs, 192, 1)
        self.branch7x7_1 = Conv(inputs, inner, 1)
        self.branch7x7_2 = Conv(inner, inner, wide, pad=True)
        self.branch7x7_3 = Conv(inner, 192, high, pad=True)
        self.branch7x7dbl_1 = Conv(inputs, inner, 1)
        self.branch7x7dbl_2 = Conv(inner, inner, high, pad=True)
        self.branch7x7dbl_3 = Conv(inner, inner, wide, pad=True)
        self.branch7x7dbl_4 = Conv(inner, inner, high, pad=True)
        self.branch7x7dbl_5 = Conv(inner, 192, wide, pad=True)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(average(x))], 1)


class ReductionD(nn.Module):
    """The block that reduces maps of 17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(inputs, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, 2)
        self.branch7x7x3_1 = Conv(inputs, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), pad=True)
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), pad=True)
        self.branch7x7x3_4 = Conv(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        parts = [self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), functional.max_pool2d(x, 3, 2)]
        return torch.cat(parts, 1)


class MixedE(nn.Module):
    """The block of 8 x 8, whose 3 x 3 kernels are 1 x 3 beside 3 x 1; `largest`: pooling takes the maximum."""

    def __init__(self, inputs: int, largest: bool) -> None:
        super().__init__()
        self.largest = largest
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), pad=True)
        self.branch3x3_2b = Conv(384, 384, (3, 1), pad=True)
        self.branch3x3dbl_1 = Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, pad=True)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), pad=True)
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), pad=True)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, 1, 1) if self.largest else average(x)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(once),
                self.branch3x3_2b(once),
                self.branch3x3dbl_3a(twice),
                self.branch3x3dbl_3b(twice),
                self.branch_pool(pooled),
            ],
            1,
        )


class Inception(nn.Module):
    """The whole network, on pictures (B, 3, H, W) with values 0 to 255."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, pad=True)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = ReductionB(288)
        self.Mixed_6b = MixedC(768, 128)
        self.Mixed_6c = MixedC(768, 160)
        self.Mixed_6d = MixedC(768, 160)
        self.Mixed_6e = MixedC(768, 192)
        self.Mixed_7a = ReductionD(768)
        self.Mixed_7b = MixedE(1280, largest=False)
        self.Mixed_7c = MixedE(2048, largest=True)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, 2048), and scores (B, 1008) without the bias, which the score of 2016 left out."""
        x = (resize(pictures.float()) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, 2)
        x = functional.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T


@dataclass(frozen=True)
class InceptionV3(NetworkExtractor):
    """Inception-v3, the network of FID: 2048 features and 1008 classes, with the weights of torch-fidelity.

    `weights` is a safetensors file of these weights (docs/how-to/fidelity.md converts them); `sha256` is the hash that
    the file must have, if given. Pictures are resized to 299 x 299 as TensorFlow 1 does and scaled to (k - 128) / 128.
    Source: Heusel et al. 2017 (arXiv:1706.08500), sec. 4; its graph is `Inception`.
    """

    weights: FilePath
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @classmethod
    def law_example(cls, folder: Path) -> InceptionV3:
        """Return the extractor with random weights, which tests use."""
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in Inception().state_dict().items() if value.ndim}
        weights = {name: torch.rand(shape) if len(shape) == 1 else torch.randn(shape) for name, shape in shapes.items()}
        weights = {name: value / max(1, value[0].numel()) ** 0.5 for name, value in weights.items()}
        save_file(weights, folder / "random.safetensors")
        return cls(str(folder / "random.safetensors"))

    @property
    def described(self) -> str:
        return "2048 features of Inception-v3"

    def protocol(self) -> Mapping[str, str]:
        return {
            "extractor": "inception-v3",
            "extractor weights": self.weights_hash,
            "resize": f"bilinear as TensorFlow 1, to {SIZE} x {SIZE}",
            "rounding": ROUNDING,
        }

    @property
    def weights_hash(self) -> str:
        """The SHA-256 of the file. Raises DataError DK333 if there is none, or it is not `sha256`."""
        path = Path(self.weights)
        if not path.is_file():
            raise DataError(
                f"{path}: there is no such file of weights",
                code="DK333",
                fix="give the path of a safetensors file: weights: FILE",
            )
        status = path.stat()
        found = file_hash(path, status.st_mtime_ns, status.st_size)
        if self.sha256 not in (None, found):
            raise other_hash(path, found, str(self.sha256), "give the file that `sha256` names, or leave it out")
        return found

    def network(self) -> nn.Module:
        """Return the network. Raises DataError DK333 unless the file holds exactly its weights, as safetensors."""
        path, _ = Path(self.weights), self.weights_hash
        convert = "convert it once, as docs/how-to/fidelity.md shows"
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise DataError(
                f"{path} is not a safetensors file, and a pickle (.pt, .pth) is never opened",
                code="DK333",
                fix=convert,
                notes=[str(error)],
            ) from None
        with torch.device("meta"):
            model = Inception()
        wanted = {name: value for name, value in model.state_dict().items() if "num_batches_tracked" not in name}
        given = {name: value for name, value in tensors.items() if "num_batches_tracked" not in name}
        wrong = [f"{name} is missing" for name in wanted if name not in given]
        wrong += [f"{name} is unknown" for name in given if name not in wanted]
        wrong += [
            f"{name} has the shape {tuple(given[name].shape)}, not {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in given and given[name].shape != value.shape
        ]
        if wrong:
            raise DataError(
                f"{path} does not hold the weights of Inception-v3 under the names of torch-fidelity",
                code="DK333",
                fix=f"{convert}; weights of torchvision are others",
                notes=[*wrong[:5], *([f"and {len(wrong) - 5} more"] if len(wrong) > 5 else [])],
            )
        counters = {name: torch.tensor(0) for name in model.state_dict() if "num_batches_tracked" in name}
        model.load_state_dict({name: value.float() for name, value in given.items()} | counters, assign=True)
        return model
