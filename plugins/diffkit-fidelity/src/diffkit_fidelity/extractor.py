"""Extractors: what turns examples into the features and class scores that the metrics of this package compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from diffkit import DataError, DataSpec

CHANNELS = (1, 3)


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
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x.flatten(1))).any(dim=1).sum())
        raise DataError(
            f"{bad} of {len(x)} samples hold NaN or infinite values",
            code="DK330",
            fix="find the first bad value in metrics.jsonl; sample from an earlier checkpoint, or with more steps",
        )
    values = x.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return values.expand(-1, 3, -1, -1)
