"""A residual MLP for vectors, such as points in a plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as fn

from diffkit import Network, Shape, UsageError

from .embedding import Embedding, Order
from .fit import check_choices, misfit
from .initialisation import Initialisation, Style

Activation = Literal["silu", "gelu", "relu", "tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": fn.silu,
    "gelu": fn.gelu,
    "relu": fn.relu,
    "tanh": torch.tanh,
}
Positive = Annotated[int, Field(ge=1)]


class MLP(Network):
    """`depth` residual blocks that read the noise level: x (B, C), c_noise (B,), label (B,) long -> (B, C').

    width                width of the blocks
    depth                number of blocks, of two linear layers each
    embedding_channels   length of the sinusoid; the embedding is four times as long
    embedding            `ho` [sin, cos] or `openai` [cos, sin]; see `sinusoid`
    dropout              probability, before the second layer of each block
    activation           `silu`, `gelu`, `relu` or `tanh`
    initialisation       `ddpm`, `ddpm-zero`, `openai` or `torch`; see `Initialisation`

    Raises: RecipeError (DK140) if the data are not vectors; UsageError (DK040, DK041) if an input does not fit.

    Source: none; the blocks of Ho et al. 2020 (arXiv:2006.11239) with linear layers for convs, LayerNorm for
    GroupNorm.
    """

    def __init__(
        self,
        shape: Shape,
        width: Positive = 256,
        depth: Positive = 4,
        embedding_channels: Annotated[int, Field(ge=4, multiple_of=2)] = 128,
        embedding: Order = "ho",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        activation: Activation = "silu",
        initialisation: Style = "ddpm",
    ) -> None:
        super().__init__()
        check_choices(
            embedding=(embedding, Order), activation=(activation, Activation), initialisation=(initialisation, Style)
        )
        if shape.size:
            raise misfit(
                f"network mlp takes vectors, but the data has size {shape.size}",
                fix="use network unet for images" if len(shape.size) == 2 else None,
            )
        init = Initialisation(initialisation)
        emb = 4 * embedding_channels
        self.shape = shape
        self.embedding = Embedding(embedding_channels, emb, embedding, shape.classes, init)
        self.enter = init.layer(nn.Linear(shape.in_channels, width))
        self.blocks = nn.ModuleList(LinearBlock(width, emb, dropout, activation, init) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.activation = ACTIVATIONS[activation]
        self.leave = init.last(nn.Linear(width, shape.out_channels))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Compute the output of a batch.

        Args:
            x: Scaled noisy vectors: (B, C).
            c_noise: The noise level: (B,).
            label: Classes: (B,) long; the null class by default.

        Returns:
            The output: (B, C').
        """
        if x.ndim != 2 or x.shape[1] != self.shape.in_channels or c_noise.shape != x.shape[:1]:
            raise UsageError(
                f"network mlp takes x (B, {self.shape.in_channels}) and c_noise (B,), "
                f"got {tuple(x.shape)} and {tuple(c_noise.shape)}",
                code="DK040",
                fix="flatten x, or use a network for images",
            )
        emb = self.embedding(c_noise, label)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, emb)
        out: Tensor = self.leave(self.activation(self.norm(h)))
        return out


class LinearBlock(nn.Module):
    """The residual block x + W2 act(W1 act(norm(x)) + W emb)."""

    def __init__(self, width: int, embedding: int, dropout: float, activation: str, init: Initialisation) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear1 = init.layer(nn.Linear(width, width))
        self.time = init.layer(nn.Linear(embedding, width))
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)
        self.linear2 = init.last(nn.Linear(width, width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Apply the block to x: (B, width) with emb: (B, E) -> (B, width)."""
        h = self.linear1(self.activation(self.norm(x))) + self.time(emb)
        out: Tensor = x + self.linear2(self.dropout(self.activation(h)))
        return out
