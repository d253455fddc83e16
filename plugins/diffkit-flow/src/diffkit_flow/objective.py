"""Flow matching with a coupling of data and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffkit import UNIFORM_TIMES, DataError, Loss, Model, Objective, RandomStreams, Times, Weighting, broadcast

from .coupling import optimal


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Flow matching: w |y - target|^2 at random times on the path alpha x0 + sigma eps, mean over dimensions.

    With schedule `rectified` and parameterization `flow` this is |u(x_t, t) - (eps - x0)|^2. Output channels beyond
    those of x0, such as a head for the variance, are not trained. The coupling chooses the eps of each x0:
    `independent`; `optimal`, the cheapest assignment within the (micro-)batch, which straightens the flow; `pairs`, the
    noise stored in data `pairs` (reflow). Raises DataError DK340 if the coupling is `pairs` and the data has no noise.
    Source: Lipman et al. 2023 (arXiv:2210.02747), eq. 14; Liu et al. 2023 (arXiv:2209.03003), eq. 1; `optimal`: Tong
    et al. 2024 (arXiv:2302.00482), sec. 3.2.
    Differs: train.accumulate and the number of devices change the batch in which `optimal` pairs.
    """

    coupling: Literal["independent", "optimal", "pairs"] = "independent"
    weighting: Weighting | None = None
    times: Times = UNIFORM_TIMES

    def __call__(
        self, model: Model, x0: Tensor, noise: RandomStreams, *, ema: Model | None = None, **cond: Tensor
    ) -> Loss:
        t = self.times.of_rows(noise, x0, model.schedule)
        level = model.schedule.level(t)
        eps = self._coupled(x0, noise, cond)
        y = model.output(level.add_noise(x0, eps), level, t, **cond)[:, : x0.shape[1]]
        target = model.parameterization.target(x0, eps, level)
        each = (y - target).square().flatten(1).mean(1)
        if self.weighting is not None:
            each = each * broadcast(self.weighting.on_output(level, model.parameterization), each)
        return Loss.of(each, t, self.times.correction(t, model.schedule))

    def update(self, t: Tensor, each: Tensor) -> None:
        self.times.update(t, each)

    def _coupled(self, x0: Tensor, noise: RandomStreams, cond: dict[str, Tensor]) -> Tensor:
        """eps: (B, *S); noise of the data is removed from `cond`, as the network does not take it."""
        given = cond.pop("eps", None)
        if self.coupling == "pairs":
            if given is None:
                raise DataError(
                    "coupling `pairs` requires the noise of each example, which this data does not have",
                    code="DK340",
                    fix="use data `pairs`, written by diffkit reflow, or set coupling to independent or optimal",
                )
            return given.to(torch.promote_types(x0.dtype, torch.float32))
        eps = noise.normal("noise", x0)
        return optimal(x0, eps) if self.coupling == "optimal" else eps
