"""Classifier guidance: along the gradient of the log-probability that a classifier gives to the label of noisy data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit import Denoiser, Estimate, Guidance, Level, broadcast, weighted_sum

Classifier = Callable[[Tensor, Level], Tensor]
"""(x at level, level) -> logits: (B, classes)."""


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """Add the gradient of scale log p(label | x) to the score: eps = eps - scale sigma grad log p(label | x).

    The classifier is trained on noisy data. With an unconditional denoiser, scale 1 gives the conditional distribution;
    larger scales favour examples that the classifier is certain of. Examples whose label is the null class are not
    guided. The denoiser is called without the label unless `conditional`.

    classifier    computes logits: (B, classes), from x: (B, *S) at a level; differentiable in x
    scale         factor of the gradient; 0 turns it off
    conditional   whether the denoiser receives the label too

    In the library only: the classifier is a function, which a recipe cannot state.
    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233), Algorithm 2, eq. 14.
    """

    classifier: Classifier
    scale: float = 1.0
    conditional: bool = False

    def __call__(self, denoise: Denoiser) -> Denoiser:
        def guided(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            given = cond if self.conditional else {name: value for name, value in cond.items() if name != "label"}
            estimate = denoise(x, level, **given)
            if "label" not in cond or self.scale == 0.0:
                return estimate
            at = level.like(x)
            gradient = self.gradient(x, level, cond["label"])
            eps = weighted_sum(1.0, estimate.eps, -self.scale * at.sigma, gradient)
            return estimate.with_x0((x - at.sigma * eps) / at.alpha)

        return guided

    def gradient(self, x: Tensor, level: Level, label: Tensor) -> Tensor:
        """Compute the gradient of log p(label | x).

        Args:
            x: Noisy data at `level`: (B, *S).
            level: The level of x.
            label: Classes: (B,) long.

        Returns:
            The gradient: (B, *S), 0 for examples with the null class.
        """
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            logs = torch.log_softmax(self.classifier(z, level), dim=1)
            known = (label >= 0) & (label < logs.shape[1])
            rows = label.clamp(0, logs.shape[1] - 1).expand(len(x))
            (found,) = torch.autograd.grad(logs.gather(1, rows[:, None]).sum(), z)
        return found * broadcast(known.expand(len(x)).to(found.dtype), x)
