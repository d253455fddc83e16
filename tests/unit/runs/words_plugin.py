"""Points left or right of 0 by their caption, a network that reads texts and channels, and a frozen conditioner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffkit import (
    Conditioner,
    ConditionSpec,
    Data,
    DataSpec,
    Entry,
    InMemorySplit,
    Network,
    Part,
    Shape,
    as_bytes,
    hookimpl,
)

TEXTS = ("left", "right")
LENGTH = 8


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield Entry("data", "captioned", f"{__name__}:Captioned", "points by caption")
    yield Entry("network", "reader", f"{__name__}:Reader", "reads a text")
    yield Entry("network", "blind", f"{__name__}:Blind", "reads a text of another width")
    yield Entry("network", "stubborn", f"{__name__}:Stubborn", "reads numbers, and a text of another width")
    yield Entry("network", "demanding", f"{__name__}:Demanding", "requires what nobody supplies")
    yield Entry("conditioner", "frozen", f"{__name__}:Frozen", "random features that do not train")


@dataclass(frozen=True)
class Captioned(Data):
    """x (2,) about (-1, 0) or (1, 0) by its caption; `labels` adds a label, `hint` a noisy copy of x."""

    labels: bool = False
    hint: bool = False

    @property
    def spec(self) -> DataSpec:
        found = {"text": ConditionSpec((LENGTH,), "text")}
        if self.hint:
            found["hint"] = ConditionSpec((2,))
        return DataSpec(
            2, classes=3 if self.labels else None, class_names=(*TEXTS, "up") if self.labels else (), conditions=found
        )

    def split(self, part: Part) -> InMemorySplit:
        count = 256 if part == "train" else 32
        source = torch.Generator().manual_seed(count)
        side = torch.arange(count) % 2
        x = 0.2 * torch.randn(count, 2, generator=source)
        x[:, 0] += 2.0 * side - 1.0
        cond = {"text": as_bytes([TEXTS[k] for k in side], LENGTH)}
        if self.labels:
            cond["label"] = side
        if self.hint:
            cond["hint"] = x + 0.1 * torch.randn(count, 2, generator=source)
        return InMemorySplit(x, cond)


class Reader(Network):
    """Three layers; the mean of a text and the channels of `concat` are further inputs."""

    def __init__(self, shape: Shape, width: int = 32) -> None:
        super().__init__()
        if "text" not in shape.conditions:
            raise ValueError("reader requires the condition text")
        self.extra = shape.extra_channels
        self.enter = nn.Linear(shape.in_channels + self.extra + 2, width)
        self.read = nn.Linear(shape.conditions["text"][1], width)
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, shape.out_channels))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | None = None,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        phase = (c_noise / 100)[:, None]
        channels = [x, phase.sin(), phase.cos()]
        if self.extra:
            channels.append(x.new_zeros(len(x), self.extra) if concat is None else concat)
        h = self.enter(torch.cat(channels, 1))
        if text is not None and text_mask is not None:
            h = h + self.read((text * text_mask[..., None]).sum(1) / text_mask.sum(1, keepdim=True))
        y: Tensor = self.layers(h)
        return y


class Blind(Reader):
    """Takes a text of 5 features only."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.read = nn.Linear(5, 32)


class Stubborn(Blind):
    """Reads a number first, which no tensor on the meta device has."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.enter.register_forward_pre_hook(_read)


def _read(module: nn.Module, given: tuple[Tensor, ...]) -> None:
    float(given[0].sum())


class Demanding(Network):
    """Requires a condition `mood`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layer = nn.Linear(shape.in_channels, shape.out_channels)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, *, mood: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + mood
        return y


class Frozen(Conditioner):
    """(1, 16) features of the bytes of a text. `calls` counts how often `forward` runs."""

    calls = 0

    def __init__(self, condition: ConditionSpec) -> None:
        super().__init__()
        self.features = nn.Linear(condition.shape[0], 16).requires_grad_(False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 16)

    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        type(self).calls += 1
        return self.features(raw / 128)[:, None].tanh(), torch.ones(len(raw), 1, dtype=torch.bool)

    def null(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 16), torch.ones(1, dtype=torch.bool)
