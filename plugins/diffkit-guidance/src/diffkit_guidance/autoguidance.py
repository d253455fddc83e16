"""Guidance away from a worse model, whose weights are those of another run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from diffkit import CheckpointError, Denoiser, Estimate, FilePath, Guidance, Level, Model, open_run, weights_hash
from diffkit.oracles import GaussianOracle


@dataclass
class Autoguidance(Guidance):
    """Extrapolate from a worse model to this one: worse + scale (this - worse); scale 1 turns it off.

    The worse model is trained on the same data with less capacity or for a shorter time, and receives the same
    conditions. Each step evaluates both models.

    run       folder of the run of the worse model
    scale     how far to go from the worse to this estimate
    weights   weights of the run: raw, ema, the name of an average, or width:W
    sha256    hash of these weights, as `Autoguidance.hash` returns it; other weights are refused. None accepts any

    Raises UsageError if there is no run, and CheckpointError for other weights.
    Source: Karras et al. 2024 (arXiv:2406.02507), sec. 2, D_w = w D_1 + (1 - w) D_0.
    """

    run: FilePath
    scale: Annotated[float, Field(ge=0)] = 2.0
    weights: str = "ema"
    sha256: str | None = None
    _given: Denoiser | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, worse: Denoiser, scale: float = 2.0) -> Autoguidance:
        """Return the guidance with a denoiser as the worse model, in place of a run."""
        made = cls("", scale)
        made._given = worse
        return made

    @staticmethod
    def law_example(folder: Path) -> Autoguidance:
        """Return an instance on which the laws are tested: the worse model is a wide Gaussian."""
        return Autoguidance.of(GaussianOracle(0.1, 1.6))

    @cached_property
    def worse(self) -> Denoiser:
        """The worse model, loaded at the first use."""
        if self._given is not None:
            return self._given
        model = open_run(self.run).trained(self.weights).model
        found = weights_hash(model.network)
        if self.sha256 is not None and found != self.sha256:
            raise CheckpointError(
                f"the weights {self.weights} of {self.run} have the hash {found[:12]}..., not {self.sha256[:12]}...",
                fix="restore the run whose weights this recipe was made with, or set sha256 to the new hash",
            )
        return model

    def hash(self) -> str:
        """Return the hash of the weights of the worse model, for the option `sha256`."""
        return weights_hash(self.worse.network) if isinstance(self.worse, Model) else ""

    def __call__(self, denoise: Denoiser) -> Denoiser:
        if self.scale == 1.0:
            return denoise

        def guided(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            if isinstance(self.worse, Model) and isinstance(self.worse.network, nn.Module):
                self.worse.network.to(x.device)
            good = denoise(x, level, **cond)
            return self.worse(x, level, **cond).interpolate(good, self.scale).with_aux(unguided=good.x0)

        return guided
