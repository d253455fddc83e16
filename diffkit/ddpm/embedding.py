"""Embedding of the noise level, the label and further vectors as one vector that every residual block reads.

The noise level becomes sines and cosines of geometrically spaced frequencies, and a small MLP maps them to the vector.
A label adds a learned vector, and each further condition a linear map of its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from diffkit.errors import ArgumentError, UsageError

from .conditions import check_vectors
from .initialisation import Initialisation

Order = Literal["ho", "openai"]


def sinusoid(t: Tensor, channels: int, order: Order = "ho") -> Tensor:
    """Compute sines and cosines of t with half = channels / 2 frequencies 10000^(-k/d), k < half.

    `ho`: [sin, cos] with d = half - 1; `openai`: [cos, sin] with d = half. Weights trained with one order do not work
    with the other. Computed in float32, or in float64 if t is, whatever the dtype of the network.
    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5; `ho` from Ho et al. 2020 (arXiv:2006.11239).

    Args:
        t: Numbers: (B,).
        channels: Number of features, even.
        order: `ho` (default) or `openai`.

    Returns:
        Features: (B, channels).
    """
    half = channels // 2
    t = t if t.dtype == torch.float64 else t.float()
    k = torch.arange(half, dtype=t.dtype, device=t.device)
    frequency = torch.exp(-math.log(10000.0) * k / (half - 1 if order == "ho" else half))
    angle = t[:, None] * frequency
    sin, cos = angle.sin(), angle.cos()
    return torch.cat([sin, cos] if order == "ho" else [cos, sin], dim=1)


class Embedding(nn.Module):
    """Embed noise level, label and augmentation as one vector: (B,) -> (B, width).

    The vector is silu(W2 silu(W1 sinusoid(c_noise)) + table[label] + W3 augment + ...) with learned matrices W.

    With K `classes` the table has K + 1 rows; row K is the null class, which is used if no label is given. `augment` is
    the number of parameters per example that an augmentation passes; without them the example counts as unchanged.
    `vectors` is the width of each further condition by name; a condition that is absent adds nothing.

    Source: a vector that every block reads as scale and shift: Perez et al. 2018 (arXiv:1709.07871), eq. 1, 2.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        order: Order,
        classes: int | None,
        init: Initialisation,
        augment: int = 0,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.order, self.classes = channels, order, classes
        self.linear1 = init.layer(nn.Linear(channels, width))
        self.linear2 = init.layer(nn.Linear(width, width))
        self.table = None if classes is None else nn.Embedding(classes + 1, width)
        self.augment = init.layer(nn.Linear(augment, width, bias=False)) if augment else None
        self.widths = dict(vectors or {})
        self.vectors = nn.ModuleDict(
            {name: init.layer(nn.Linear(size, width, bias=False)) for name, size in self.widths.items()}
        )

    def forward(
        self,
        c_noise: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        vectors: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Compute the vector that the blocks read.

        Args:
            c_noise: The noise level: (B,).
            label: Classes: (B,) long; the null class by default.
            augment: Parameters of an augmentation: (B, A); none by default.
            vectors: Further conditions by name: (B, D), or (B,) for one number; none by default.

        Returns:
            The embedding: (B, width).

        Raises:
            UsageError: A condition is given to a network without it, does not fit, or a label is not a class (DK041).
            ArgumentError: `label` is not a tensor of one whole number per example.
        """
        features = sinusoid(c_noise, self.channels, self.order).to(self.linear1.weight.dtype)
        h = self.linear2(fn.silu(self.linear1(features)))
        row = label_vectors(self.table, label, c_noise.shape)
        h = h if row is None else h + row
        if augment is not None:
            if self.augment is None:
                raise UsageError(
                    "this network was built without `augment`, but parameters of an augmentation were given",
                    code="DK041",
                    fix=f"build it with augment: {augment.shape[1]}, or set labels: false in the augmentation",
                )
            h = h + self.augment(augment.to(h.dtype))
        check_vectors(vectors or {}, self.widths, len(c_noise))
        for name, value in (vectors or {}).items():
            h = h + self.vectors[name](value.reshape(len(value), -1).to(h.dtype))
        return fn.silu(h)


def label_vectors(table: nn.Embedding | None, label: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Return the learned vectors of labels, one per example or one for all.

    Args:
        table: K + 1 vectors, the last that of the null class; None in a network without classes.
        label: Classes: (B,) long; None for the null class.
        shape: (B,).

    Returns:
        The vectors: (B, width) or (1, width); None without a table.

    Raises:
        UsageError: A label is given without a table, or is not a class (DK041).
        ArgumentError: `label` is not a tensor of one whole number per example.
    """
    if table is None:
        if label is None:
            return None
        raise UsageError(
            "this network was built without classes, but a label was given",
            code="DK041",
            fix="leave the label out, or train on data with labels (shape.classes)",
        )
    if label is None:
        return table.weight[-1:]
    whole = isinstance(label, Tensor) and label.dtype in (torch.int64, torch.int32)
    if not whole or label.shape not in ((1,), shape):
        got = f"{label.dtype} {tuple(label.shape)}" if isinstance(label, Tensor) else type(label).__name__
        fix = "convert names to numbers: torch.tensor([0, 1])"
        raise ArgumentError(f"`label` must be a long tensor {tuple(shape)}, got {got}", fix=fix)
    try:
        rows: Tensor = table(label)
    except IndexError as error:
        message = f"`label` holds {int(label.min())} to {int(label.max())}, outside of the classes"
        choices = f"0 to {table.num_embeddings - 1}"
        raise UsageError(message, code="DK041", choices=choices, fix="pass classes") from error
    return rows
