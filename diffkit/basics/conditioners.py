"""The conditioners of diffkit: classes as numbers or vectors, bytes of texts, and what is concatenated to x."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from diffkit import Codec, Conditioner, ConditionSpec, Data, Unchanged

Width = Annotated[int, Field(ge=1)]
START = 256
"""The token before the 256 values of a byte."""
SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Label(Conditioner):
    """Pass a class as its number, with the null class K, or, with a `width`, as a learned vector, null class included.

    The condition `label` stays a number, which networks embed; other conditions reach a network as vectors.
    Raises ValueError if the condition has no classes.
    Source: Ho & Salimans 2022 (arXiv:2207.12598), sec. 3.2: the null class is trained as one more class.
    """

    law_options = ({"width": 5},)

    def __init__(self, condition: ConditionSpec, width: Width | None = None) -> None:
        super().__init__()
        if condition.classes is None:
            raise ValueError(f"label requires a condition of classes, not one of dtype {condition.dtype}")
        self.number = Unchanged(condition)
        self.embedding = None if width is None else nn.Embedding(condition.classes + 1, width)

    @property
    def shape(self) -> tuple[int, ...]:
        return () if self.embedding is None else (self.embedding.embedding_dim,)

    def forward(self, raw: Tensor) -> Tensor:
        value: Tensor = self.number(raw) if self.embedding is None else self.embedding(raw)
        return value

    def null(self) -> Tensor:
        number = self.number.null()
        return number if self.embedding is None else self.embedding.weight[-1]


class Text(Conditioner):
    """Encode the bytes of a text by a small transformer that is trained with the model: (L, width), L = bytes + 1.

    The first token is a start token, so that an empty text has one token too; the mask is False after the last byte.
    The null is one learned vector in place of the start token. Longer texts are cut to `length` bytes.
    Raises ValueError if the condition is not a text, or `heads` does not divide `width`.
    Source: Nichol et al. 2022 (arXiv:2112.10741), sec. 2.3, a transformer on a text that is trained with the model.
    Differs: bytes instead of words; the null is learned instead of the empty text.
    """

    law_base: ClassVar[Mapping[str, int]] = {"width": 8, "heads": 2, "depth": 1}

    def __init__(
        self,
        condition: ConditionSpec,
        width: Width = 64,
        depth: Annotated[int, Field(ge=0)] = 2,
        heads: Width = 4,
        length: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        super().__init__()
        if condition.dtype != "text":
            raise ValueError(f"text requires a condition of texts, not one of dtype {condition.dtype}")
        if width % heads:
            raise ValueError(f"heads {heads} does not divide width {width}")
        self.length = min(length or condition.shape[0], condition.shape[0])
        self.token = nn.Embedding(START + 1, width)
        self.position = nn.Parameter(torch.randn(self.length + 1, width) / math.sqrt(width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.nothing = nn.Parameter(torch.randn(width))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length + 1, self.norm.normalized_shape[0])

    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        tokens = functional.pad(raw[:, : self.length].long(), (1, 0), value=START)
        mask = tokens != 0
        h = self.token(tokens) + self.position
        for block in self.blocks:
            h = block(h, mask)
        return self.norm(h) * mask[..., None], mask

    def null(self) -> tuple[Tensor, Tensor]:
        first = torch.arange(self.length + 1, device=self.nothing.device) == 0
        return self.nothing * first[:, None], first


class _Block(nn.Module):
    """Attention among the tokens of each text, then two layers for each token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, mask[:, None, None])
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        refined: Tensor = h + self.layers(self.between(h))
        return refined


class Concat(Conditioner):
    """Concatenate a condition, such as a low resolution or a mask, to x as channels, scaled to the size of x.

    Values of dtype uint8 become k / 127.5 - 1; the null is 0. `smooth` interpolates linearly, and averages where the
    condition is larger than x; otherwise the nearest value is taken, as for masks and classes of pixels.
    Raises ValueError if the condition does not have as many dimensions as x.
    Source: Saharia et al. 2021 (arXiv:2104.07636), sec. 2. Differs: they interpolate bicubically.
    """

    concat = True
    law_options = ({"smooth": False},)

    def __init__(self, condition: ConditionSpec, data: Data, codec: Codec | None = None, smooth: bool = True) -> None:
        super().__init__()
        spec = data.spec if codec is None else codec.spec(data.spec)
        if len(condition.shape) != len(spec.shape):
            raise ValueError(
                f"concat requires a condition with the dimensions of x, {spec.shape}, not {condition.shape}"
            )
        self.unscaled, self.size, self.smooth = Unchanged(condition), spec.size, smooth

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.unscaled.shape[0], *self.size)

    def forward(self, raw: Tensor) -> Tensor:
        value: Tensor = self.unscaled(raw)
        if tuple(value.shape[2:]) == self.size:
            return value
        smaller = all(ours <= theirs for ours, theirs in zip(self.size, value.shape[2:], strict=True))
        mode = "nearest-exact" if not self.smooth else "area" if smaller else SMOOTH[len(self.size)]
        return functional.interpolate(value, self.size, mode=mode)

    def null(self) -> Tensor:
        return torch.zeros(self.shape)
