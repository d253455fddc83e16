"""Classifier guidance: along the gradient of the log-probability that a classifier gives to the label of noisy data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from diffkit import (
    Classifier,
    ClassifierParts,
    Denoiser,
    Estimate,
    FilePath,
    Guidance,
    Level,
    Shape,
    UsageError,
    broadcast,
    open_run,
    weighted_sum,
)
from diffkit.oracles import MixtureOracle

Logits = Callable[[Tensor, Level], Tensor]
"""(x at level, level) -> logits: (B, classes), differentiable in x."""


@dataclass
class ClassifierGuidance(Guidance):
    """Add the gradient of scale log p(label | x) to the score: eps = eps - scale sigma grad log p(label | x).

    The classifier is trained on noisy data, by a recipe with `task: classifier`. With an unconditional denoiser, scale
    1 gives the conditional distribution; larger scales favour examples that the classifier is certain of. Examples
    whose label is the null class are not guided. The denoiser is called without the label unless `conditional`.

    run          folder of the run of the classifier, with the codec of this run
    scale        factor of the gradient; 0 turns it off
    conditional  whether the denoiser receives the label too
    weights      weights of the run: raw, ema, the name of an average, or width:W

    Raises UsageError DK124 if the run is not one of `task: classifier`, or has other classes or examples of another
    shape than this recipe, DK611 if there is no run.
    Source: Dhariwal & Nichol 2021 (arXiv:2105.05233), Algorithm 2, eq. 14.
    """

    run: FilePath
    scale: Annotated[float, Field(ge=0)] = 1.0
    conditional: bool = False
    weights: str = "ema"
    shape: Shape | None = None
    _given: Logits | None = field(default=None, init=False, repr=False)
    null_conditions = ("label",)

    def __post_init__(self) -> None:
        if not self.run:
            return
        found = open_run(self.run, device="cpu")
        if not isinstance(found.parts, ClassifierParts):
            message = f"the run {self.run} trains a {found.recipe.task}, not a classifier"
            raise UsageError(message, code="DK124", fix="name a run of a recipe with task: classifier")
        theirs, ours = found.parts.shape, self.shape
        known = (theirs.in_channels, *theirs.size), theirs.out_channels
        if ours is not None and known != (wanted := ((ours.in_channels, *ours.size), ours.classes)):
            message = (
                f"the classifier of {self.run} has inputs of shape {known[0]} and {known[1]} classes; "
                f"this recipe has {wanted[0]} and {wanted[1]}"
            )
            raise UsageError(message, code="DK124", fix="train a classifier on the data and the codec of this recipe")

    @classmethod
    def of(cls, classifier: Logits, scale: float = 1.0, conditional: bool = False) -> ClassifierGuidance:
        """Return the guidance by a function in place of a run.

        Args:
            classifier: Computes logits: (B, classes), from x: (B, *S) at a level; differentiable in x.
            scale: Factor of the gradient.
            conditional: Whether the denoiser receives the label too.

        Returns:
            The guidance.
        """
        made = cls("", scale, conditional)
        made._given = classifier
        return made

    @staticmethod
    def law_example(folder: Path) -> ClassifierGuidance:
        """Return an instance on which the laws are tested."""
        return _OfMixture("")

    @property
    def needs_null(self) -> bool:
        return not self.conditional

    @cached_property
    def classifier(self) -> Logits:
        """The classifier, loaded at the first use."""
        return self._given or open_run(self.run).classifier(self.weights)

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
            if isinstance(self.classifier, Classifier):
                self.classifier.network.to(x.device)
            logs = torch.log_softmax(self.classifier(z, level), dim=1)
            known = (label >= 0) & (label < logs.shape[1])
            rows = label.clamp(0, logs.shape[1] - 1).expand(len(x))
            (found,) = torch.autograd.grad(logs.gather(1, rows[:, None]).sum(), z)
        return found * broadcast(known.expand(len(x)).to(found.dtype), x)


class _OfMixture(ClassifierGuidance):
    """Guidance by the exact classifier of a mixture, on which the laws are tested."""

    @cached_property
    def classifier(self) -> Logits:
        mixture = MixtureOracle([0.5, 0.2, 0.3], [[0.8, 0.1], [-0.7, 0.4], [0.0, -1.0]], [0.05, 0.2, 0.1])
        return lambda x, level: mixture.responsibilities(x, level).log()
