"""Codecs: maps between data and the space in which diffusion takes place, such as the latents of an autoencoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from .data import DataSpec


class Codec(ABC):
    """Base of codecs: x is encoded before training and decoded after sampling. A learned codec is an `nn.Module`."""

    @abstractmethod
    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode x: (B, C, *S) -> z: (B, C', *S'). `noise` is shaped like z, for encoders that are distributions."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Decode z: (B, C', *S') -> x: (B, C, *S)."""

    def spec(self, data: DataSpec) -> DataSpec:
        """Return the spec of z, given the spec of the data; the same by default."""
        return data


@dataclass(frozen=True)
class Posterior:
    """The Gaussian of the codes of examples: mean and std, (B, C', *S') each; std None if the encoder is a function."""

    mean: Tensor
    std: Tensor | None = None

    def sample(self, noise: Tensor | None) -> Tensor:
        """Return the codes for standard normal `noise`, shaped like the mean; the mean without noise."""
        return self.mean if noise is None or self.std is None else self.mean + self.std * noise


class Identity(Codec):
    """Diffuse the data itself: z = x."""

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z
