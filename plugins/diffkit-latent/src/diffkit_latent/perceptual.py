"""The perceptual loss: the difference of features of a network whose weights are in a file of the user."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffkit import Data, DataError, DataSpec, FilePath, Reconstruction, ReconstructionLoss, build

from .losses import Weight

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels of ImageNet in [0, 1], for which VGG networks are made."""
CONVOLUTION = re.compile(r"features\.(\d+)\.weight")
LINEAR = "lin{}.model.1.weight"
TINY = 1e-10


class Perceptual(nn.Module, ReconstructionLoss):
    """The distance of features of x and of its reconstruction, times `weight`.

    `file` is a safetensors file of a VGG network with the names of torchvision: convolutions `features.N.weight` and
    `features.N.bias`, each followed by ReLU; where N grows by 3, the map is halved before. The features are the last
    maps of each size, with norm 1 over the channels at each position. Their squared differences are averaged over
    positions and summed over channels; with the weights of LPIPS, `lin0.model.1.weight` and so on in the same file,
    times these. Nothing is downloaded.
    Source: Zhang et al. 2018 (arXiv:1801.03924), eq. 1.
    Raises DataError DK302 for a file that holds no such network, or weights of LPIPS of another one; ValueError for
    data that is not images of 1 or 3 channels, or too small for the network.
    """

    weight: float
    mean: Tensor
    std: Tensor
    law_minimum = 0.0

    def __init__(self, data: Data, file: FilePath, weight: Weight = 1.0) -> None:
        super().__init__()
        self.weight = weight
        tensors = _read(file)
        stages = _stages(tensors, file)
        _require_images(data.spec, halvings=len(stages) - 1)
        self.stages = nn.ModuleList(stages)
        for index, share in enumerate(_shares(tensors, stages, file)):
            self.register_buffer(f"share{index}", share.float(), persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
        self.requires_grad_(False)

    @staticmethod
    def law_example(folder: Path) -> Perceptual:
        """Return an instance on which the laws are tested: a small network with random weights."""
        save_file(law_tensors(), folder / "vgg.safetensors")
        np.save(folder / "images.npy", np.zeros((4, 8, 8, 3), dtype=np.uint8))
        return Perceptual(build("data", "arrays", path=str(folder / "images.npy")), str(folder / "vgg.safetensors"))

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the last map of each size for x: (B, 3 or 1, H, W) in [-1, 1], with norm 1 over the channels."""
        inside = ((x.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.std
        found = []
        for stage in self.stages:
            inside = stage(inside)
            found.append(inside / (inside.square().sum(1, keepdim=True).sqrt() + TINY))
        return found

    def __call__(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        with torch.no_grad():
            wanted = self.features(x)
        total = x.new_zeros(len(x))
        for index, (ours, theirs) in enumerate(zip(self.features(out.x), wanted, strict=True)):
            share = self.get_buffer(f"share{index}")
            total = total + ((ours - theirs).square() * share).sum(1).flatten(1).mean(1)
        return self.weight * total


def law_tensors() -> dict[str, Tensor]:
    """Return the weights of a small network of two sizes, with weights of its channels as in LPIPS."""
    source = torch.Generator().manual_seed(3)
    tensors = {}
    for number, outputs, inputs in ((0, 6, 3), (2, 5, 6), (5, 4, 5)):
        tensors[f"features.{number}.weight"] = 0.3 * torch.randn(outputs, inputs, 3, 3, generator=source)
        tensors[f"features.{number}.bias"] = 0.1 * torch.randn(outputs, generator=source)
    shares = {LINEAR.format(index): torch.rand(1, width, 1, 1, generator=source) for index, width in enumerate((5, 4))}
    return {**tensors, **shares}


def _read(file: str) -> Mapping[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise _no_network(f"{file} cannot be read as safetensors: {error}") from error


def _stages(tensors: Mapping[str, Tensor], file: str) -> list[nn.Sequential]:
    """Return the layers up to the last map of each size. Raises DataError DK302 if the file holds no such network."""
    numbers = sorted(int(match[1]) for name in tensors if (match := CONVOLUTION.fullmatch(name)))
    stages: list[nn.Sequential] = []
    channels = 3
    for before, number in zip([None, *numbers], numbers, strict=False):
        weight, bias = tensors[f"features.{number}.weight"], tensors.get(f"features.{number}.bias")
        gap = 0 if before is None else number - before
        if bias is None or weight.ndim != 4 or weight.shape[1] != channels or gap not in (0, 2, 3):
            raise _no_network(f"{file} holds no VGG network: features.{number} does not follow")
        if gap == 3:
            stages.append(nn.Sequential(nn.MaxPool2d(2)))
        elif gap == 0:
            stages.append(nn.Sequential())
        layer = nn.Conv2d(channels, len(weight), weight.shape[-1], padding=weight.shape[-1] // 2)
        layer.load_state_dict({"weight": weight, "bias": bias})
        stages[-1].extend([layer, nn.ReLU()])
        channels = len(weight)
    if not stages:
        raise _no_network(f"{file} holds no convolutions features.N.weight")
    return stages


def _shares(tensors: Mapping[str, Tensor], stages: Sequence[nn.Sequential], file: str) -> list[Tensor]:
    """Return the weight of each channel of the last map of each size: (1, C, 1, 1), ones without weights of LPIPS.

    Raises DataError DK302 if the weights are those of another network.
    """
    ones = [torch.ones(1, cast(nn.Conv2d, stage[-2]).out_channels, 1, 1) for stage in stages]
    names = [LINEAR.format(index) for index in range(len(stages))]
    if not any(name in tensors for name in names):
        return ones
    for name, wanted in zip(names, ones, strict=True):
        if name not in tensors or tensors[name].shape != wanted.shape:
            found = f"has the shape {tuple(tensors[name].shape)}" if name in tensors else "is absent"
            raise _no_network(f"{file}: {name} {found}; this network needs {tuple(wanted.shape)}")
    return [tensors[name] for name in names]


def _require_images(spec: DataSpec, halvings: int) -> None:
    """Raise ValueError for data that is not images of 1 or 3 channels, with sides that can be halved as often."""
    if len(spec.size) != 2 or spec.channels not in (1, 3):
        raise ValueError(f"the loss takes images of 1 or 3 channels, but the data has shape {spec.shape}")
    if min(spec.size) < 2**halvings:
        least, (height, width) = 2**halvings, spec.size
        raise ValueError(
            f"the network of file halves each side {halvings} times, so images must have at least {least} x {least} "
            f"pixels, got {height} x {width}"
        )


def _no_network(message: str) -> DataError:
    return DataError(message, code="DK302", fix="name a safetensors file of a VGG network with names of torchvision")
