"""Codecs: data <-> what diffuses. The identity by default; latent diffusion lives here."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from .data import DataSpec


class Codec(ABC):
    """encode(x) -> z before training, decode(z) -> x after sampling; a learned one is an `nn.Module` as well."""

    @abstractmethod
    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x: (B, C, *S) -> z: (B, C', *S'). `noise`, shaped like z, where the encoder is a distribution."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """z: (B, C', *S') -> x: (B, C, *S)."""

    def spec(self, data: DataSpec) -> DataSpec:
        """The spec of what diffuses, given the spec of the data."""
        return data


class Identity(Codec):
    """The data itself diffuses."""

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z
