"""Extractors: what turns examples into the features and class scores that the metrics of this package compare.

Those that are networks lie in files of their own.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffkit import DataError, DataSpec

CHANNELS = (1, 3)
ROUNDING = "k = round(127.5 (x + 1)), uint8"
_CHUNK = 1 << 20


class Extractor(ABC):
    """Base of extractors. Implement `described`, `protocol`, `prepared` and `__call__`."""

    batch_size = 32
    """Examples at a time; no result depends on it."""
    cached = True
    """Whether the features of training examples are worth a file that later evaluations read."""

    @property
    @abstractmethod
    def described(self) -> str:
        """A short description of the features, for the definition of a metric."""

    @abstractmethod
    def protocol(self) -> Mapping[str, str]:
        """Return the settings that the features depend on, by name: network, hash of its weights, resize, rounding."""

    @abstractmethod
    def prepared(self, x: Tensor, spec: DataSpec) -> Tensor:
        """Return the values that the extractor reads, whose hash identifies the examples.

        Args:
            x: (B, C, *S) in the range of the model.
            spec: The spec of the data.

        Returns:
            One row for each example.

        Raises:
            DataError: The extractor cannot read such examples.
        """

    @abstractmethod
    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, D) and scores of classes (B, K), logarithms of probabilities up to a constant."""


def as_pictures(x: Tensor, spec: DataSpec) -> Tensor:
    """Round examples to pictures (B, 3, H, W) uint8: k = round(127.5 (x + 1)), a grey channel three times.

    Files of samples have these values too, so a metric of samples and of their files is the same.

    Args:
        x: (B, C, H, W) in [-1, 1].
        spec: The spec of the data.

    Returns:
        The pictures.

    Raises:
        DataError: The examples are not pictures of 1 or 3 channels, or hold values that are not finite.
    """
    if len(spec.size) != 2 or spec.channels not in CHANNELS or not spec.bounded:
        raise DataError(
            f"examples of the shape {tuple(spec.shape)} are not pictures, which this extractor reads",
            code="DK332",
            fix="choose `features: plain-values` for vectors and series, or metrics that need no network: frechet, mmd",
            notes=["pictures have 1 or 3 channels, height, width, and values in [-1, 1]"],
        )
    require_finite(x)
    values = x.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return values.expand(-1, 3, -1, -1)


def require_finite(x: Tensor) -> None:
    """Raise DataError DK330 if examples x: (B, ...) hold NaN or infinite values."""
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x.flatten(1))).any(dim=1).sum())
        raise DataError(
            f"{bad} of {len(x)} samples hold NaN or infinite values",
            code="DK330",
            fix="find the first bad value in metrics.jsonl; sample from an earlier checkpoint, or with more steps",
        )


@dataclass(frozen=True)
class Values(Extractor):
    """The values of the examples as features and as scores of classes, without a network; for vectors and for tests."""

    cached = False

    @property
    def described(self) -> str:
        return "the values of the examples"

    def protocol(self) -> Mapping[str, str]:
        return {"extractor": "plain-values", "rounding": "none"}

    def prepared(self, x: Tensor, spec: DataSpec) -> Tensor:
        """Return the values (B, C * S) float32. Raises DataError DK330 for NaN and infinite values."""
        values = x.flatten(1).float()
        require_finite(values)
        return values

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        return prepared, prepared


class NetworkExtractor(Extractor):
    """Base of extractors that show pictures to a network, on a GPU if there is one."""

    @property
    @abstractmethod
    def weights_hash(self) -> str:
        """The SHA-256 of the file of the weights."""

    @abstractmethod
    def network(self) -> nn.Module:
        """Return the network with its weights: pictures (B, 3, H, W) of 0 to 255 -> features, scores."""

    def prepared(self, x: Tensor, spec: DataSpec) -> Tensor:
        return as_pictures(x, spec)

    def __call__(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            features, scores = _placed(self, device, self.weights_hash)(prepared.to(device))
        return features.cpu(), scores.cpu()


@functools.lru_cache(maxsize=2)
def _placed(extractor: NetworkExtractor, device: str, weights_hash: str) -> nn.Module:
    return extractor.network().eval().requires_grad_(False).to(device)


@functools.lru_cache(maxsize=8)
def file_hash(path: Path, changed: int, size: int) -> str:
    """Compute the SHA-256 of a file.

    Args:
        path: The file.
        changed: Time of its last change; a file that changes is read again.
        size: Its size in bytes.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def other_hash(path: Path, found: str, wanted: str, fix: str) -> DataError:
    """Return the error for a file of weights whose hash is not the expected one.

    Args:
        path: The file.
        found: Its SHA-256.
        wanted: The expected one.
        fix: The next step for the user.

    Returns:
        The error, to be raised by the caller.
    """
    return DataError(
        f"{path} is not the expected file of weights: its SHA-256 is {found}, not {wanted}", code="DK333", fix=fix
    )
