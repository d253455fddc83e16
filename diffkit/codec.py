"""Codecs: maps between data and the space in which diffusion takes place, such as the latents of an autoencoder."""

from __future__ import annotations

from abc import ABC, abstractmethod

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


class Identity(Codec):
    """Diffuse the data itself: z = x."""

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z
