"""Codecs: maps between data and the space in which diffusion takes place, such as the latents of an autoencoder."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .data import Data, DataSpec
from .errors import UsageError
from .interface import attribute


class Codec(ABC):
    """Base of codecs: x is encoded before training and decoded after sampling. A learned codec is an `nn.Module`."""

    @attribute
    def cache(self) -> bool:
        """Whether the posteriors of the training examples are kept on disk; default False."""
        return False

    @abstractmethod
    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode x: (B, C, *S) -> z: (B, C', *S'). `noise` is shaped like z, for encoders that are distributions."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Decode z: (B, C', *S') -> x: (B, C, *S)."""

    def spec(self, data: DataSpec) -> DataSpec:
        """Return the spec of z, given the spec of the data; the same by default."""
        return data

    def posterior(self, x: Tensor) -> Posterior:
        """Return the distribution of the codes of x: (B, C, *S), from which `encode` draws; one point by default."""
        return Posterior(self.encode(x))

    def fit(self, data: Data) -> str:
        """Learn from the training examples before a run starts; return a line about the result for the user.

        The codec lies on the device of the training. A resumed run loads what was learned.
        """
        return ""

    def record(self) -> CodecRecord | None:
        """Return what a run stores so that it no longer needs the source of the codec; None for a codec without a
        source.
        """
        return None


@dataclass(frozen=True)
class CodecRecord:
    """The source of the weights of a codec: their hash, and the options, plain values, that build the same modules.

    A constructor with a parameter `record: CodecRecord | None = None` receives the record of the run that is opened,
    and builds the modules from it. Their weights are those of the run.
    """

    sha256: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


def code_spec(images: DataSpec, taken: int, channels: int, factor: int) -> DataSpec:
    """Return the spec of the codes of an autoencoder of images: unbounded, each side divided by a factor.

    Args:
        images: The spec of the data.
        taken: The channels of the images that the autoencoder takes.
        channels: The channels of the codes.
        factor: Pixels along each side for one position of the codes.

    Returns:
        The spec.

    Raises:
        UsageError: DK083, the autoencoder does not take such data.
    """
    if images.channels != taken or len(images.size) != 2:
        raise UsageError(
            f"the codec takes images of {taken} channels, but the data has shape {images.shape}",
            code="DK083",
            fix="choose data and a codec that fit each other",
        )
    require_multiples(images.size, factor)
    size = tuple(length // factor for length in images.size)
    return replace(images, channels=channels, size=size, bounded=False, bins=None)


def require_multiples(size: Sequence[int], factor: int) -> None:
    """Raise UsageError DK083 if a side is not a multiple of the factor of an autoencoder."""
    if wrong := [length for length in size if length % factor]:
        below = wrong[0] // factor * factor
        near = " or ".join(str(one) for one in (below, below + factor) if one)
        raise UsageError(
            f"the codec takes sides that are multiples of {factor}, got {' x '.join(map(str, size))}",
            code="DK083",
            fix=f"crop or resize {wrong[0]} to {near}",
        )


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 of the names and values of the weights and buffers of a module: 64 hex digits."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@dataclass(frozen=True)
class Posterior:
    """The Gaussian of the codes of examples: mean and std, (B, C', *S') each; std None if the encoder is a function."""

    mean: Tensor
    std: Tensor | None = None

    def sample(self, noise: Tensor | None) -> Tensor:
        """Return the codes for standard normal `noise`, shaped like the mean; the mean without noise."""
        return self.mean if noise is None or self.std is None else self.mean + self.std * noise

    def joined(self) -> Tensor:
        """Return the mean, followed by the std, if any, as further channels: (B, C' or 2 C', *S')."""
        return self.mean if self.std is None else torch.cat([self.mean, self.std], 1)

    @classmethod
    def split(cls, joined: Tensor, channels: int) -> Posterior:
        """Return the posterior that `joined` was called for, of codes with `channels` channels."""
        return cls(*torch.split(joined, channels, 1))


class Identity(Codec):
    """Diffuse the data itself: z = x."""

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


@dataclass(frozen=True)
class Reconstruction:
    """The output of a codec for a batch of examples in training.

    x           the decoded codes: (B, C, *S)
    z           the codes that were decoded: (B, C', *S')
    posterior   the distribution of the codes
    terms       losses of the codec itself, already weighted, by name: (B,) each, such as a commitment loss
    last_layer  the parameter by whose gradient a loss may be balanced; None if there is no such parameter
    logged      further numbers for the training log by name: () each, such as the share of codes in use
    """

    x: Tensor
    z: Tensor
    posterior: Posterior
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    last_layer: nn.Parameter | None = None
    logged: Mapping[str, Tensor] = field(default_factory=dict)


class TrainableCodec(Codec, nn.Module):
    """Base of codecs that a recipe with `task: codec` trains. Implement `posterior`, `decode` and `spec`.

    A constructor that needs the channels and the size of the examples takes a parameter `data: Data`. Override
    `forward` for a codec with losses of its own, and `encode` if the codes are not those of the posterior.
    """

    @attribute
    def last_layer(self) -> nn.Parameter | None:
        """The last weight of the decoder, for losses that are balanced by their gradients; default None."""
        return None

    @abstractmethod
    def posterior(self, x: Tensor) -> Posterior:
        """Return the distribution of the codes of x: (B, C, *S)."""

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.posterior(x).sample(noise)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Encode and decode a batch.

        Args:
            x: Examples: (B, C, *S).
            noise: Standard normal numbers, shaped like the codes; without noise the mean is decoded.

        Returns:
            The reconstruction, with the losses of the codec itself.
        """
        posterior = self.posterior(x)
        z = posterior.sample(noise)
        return Reconstruction(self.decode(z), z, posterior, last_layer=self.last_layer)
