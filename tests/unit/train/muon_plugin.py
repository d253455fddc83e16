"""Muon as a plugin of one file: `diffkit run digits -P muon_plugin.py --set train.optimizer=muon`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from diffkit import Entry, NamedParameters, Optimizer, hookimpl

DIFFKIT_API = 1
A, B, C = 3.4445, -4.7750, 2.0315
"""Coefficients of the iteration: they maximise the slope at 0, and keep singular values within about [0.7, 1.2]."""


@hookimpl
def diffkit_components() -> Iterator[Entry]:
    yield Entry("optimizer", "muon", "muon_plugin:Muon", "Orthogonalise the momentum of hidden matrices")


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return about U V^T of matrix = U S V^T: (rows, columns), by X <- A X + B (X X^T) X + C (X X^T)^2 X."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.T if tall else x


class MuonWithAdamW(torch.optim.AdamW):
    """Muon for the first group of parameters, AdamW for the second."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        hidden = self.param_groups[0]
        for weight in hidden["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].mul_(hidden["momentum"]).add_(weight.grad)
            ahead = weight.grad.add(state["momentum"], alpha=hidden["momentum"])  # Nesterov
            direction = orthogonalised(ahead.reshape(len(ahead), -1))
            weight.mul_(1.0 - hidden["lr"] * hidden["weight_decay"])
            scale = 0.2 * max(direction.shape) ** 0.5  # updates are as large as those of AdamW
            weight.add_(direction.reshape(weight.shape), alpha=-hidden["lr"] * scale)
            weight.grad = None  # AdamW leaves out parameters without a gradient
        return super().step(closure)


@dataclass(frozen=True)
class Muon(Optimizer):
    """M = mu M + G, W -= lr (0.2 sqrt(max(rows, columns)) NewtonSchulz(G + mu M) + weight_decay W) for hidden matrices.

    A convolution is a matrix of (out, in * height * width). AdamW updates all else: vectors, and the modules in `rest`.
    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon. Scale: Liu et al. 2025 (arXiv:2502.16982), sec. 2.2.
    """

    lr: Annotated[float, Field(gt=0)] = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    rest: tuple[str, ...] = ("embedding", "enter", "leave")

    def __call__(self, named_parameters: NamedParameters) -> torch.optim.Optimizer:
        hidden: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in named_parameters:
            matrix = parameter.ndim >= 2 and not name.startswith(("/", *self.rest))
            (hidden if matrix else others).append(parameter)
        groups = [{"params": hidden, "momentum": self.momentum}, {"params": others}]
        return MuonWithAdamW(groups, lr=self.lr, weight_decay=self.weight_decay)
