"""The default augmentation: random horizontal flips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import DataError, FiniteAugmentation


@dataclass(frozen=True)
class Flip(FiniteAugmentation):
    """Mirror each image, x: (B, C, *S), along its last axis with `probability`.

    Raises DataError DK310 for vectors. Source: Ho et al. 2020 (arXiv:2006.11239), app. B.
    """

    probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    moves = True

    def variant(self, uniform: Tensor) -> Tensor:
        return (uniform[:, 0] < self.probability).long()

    def changed(self, x: Tensor, variant: Tensor) -> Tensor:
        if x.ndim < 3:
            raise DataError("augmentation `flip` requires images, got vectors", code="DK310", fix="leave it out")
        return torch.where(variant.bool().view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
