"""A conditioner of a stranger: a month as a point on the circle, through a linear map that is trained."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from diffkit import Conditioner, ConditionSpec, Entry, hookimpl


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield Entry("conditioner", "month", f"{__name__}:Month", "Pass a month as a vector")


class Month(Conditioner):
    """1 to 12; the null is the value of the centre of the circle."""

    def __init__(self, condition: ConditionSpec, width: int = 8) -> None:
        super().__init__()
        if condition.dtype != "float" or condition.shape:
            raise ValueError("month requires one number, 1 to 12")
        self.layer = nn.Linear(2, width)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.layer.out_features,)

    def forward(self, raw: Tensor) -> Tensor:
        angle = raw * (2 * math.pi / 12)
        value: Tensor = self.layer(torch.stack([angle.cos(), angle.sin()], 1))
        return value

    def null(self) -> Tensor:
        return self.layer.bias
