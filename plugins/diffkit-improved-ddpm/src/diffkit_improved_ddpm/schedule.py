"""The cosine schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from diffkit import Discrete


@dataclass(frozen=True)
class Cosine(Discrete):
    """The cosine schedule: beta_t = min(1 - f(t/T) / f((t-1)/T), max_beta), f(u) = cos^2((u + offset) / (1 + offset)
    pi/2).

    So alpha_bar_t = f(t/T) / f(0) until the clip, which at the defaults changes the last step only.
    Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17, offset s there.
    """

    steps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    offset: Annotated[float, Field(ge=0, lt=1)] = 0.008
    max_beta: Annotated[float, Field(gt=0, lt=1)] = 0.999
    law_options = ({"steps": 10}, {"offset": 0.02, "max_beta": 0.9})

    def __post_init__(self) -> None:
        width = math.pi / 2 / (1.0 + self.offset)

        def beta(t: int) -> float:
            """Compute beta_t with cos^2 b - cos^2 a = sin(a - b) sin(a + b), without a difference of nearly equal
            numbers.
            """
            before, now = (width * (k / self.steps + self.offset) for k in (t - 1, t))
            return math.sin(now - before) * math.sin(now + before) / math.cos(before) ** 2

        Discrete.__init__(self, [min(beta(t), self.max_beta) for t in range(1, self.steps + 1)])
