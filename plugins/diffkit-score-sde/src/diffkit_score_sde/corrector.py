"""Predictor-corrector sampling: a step of any sampler, then Langevin steps that correct its distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffkit import Denoiser, Level, Noise, Sampler

from .sampler import ReverseDiffusion


@dataclass(frozen=True)
class PredictorCorrector(Sampler[Any]):
    """One step of `predictor`, which may be any sampler, then `rounds` of x + d score + sqrt(2 d) z at the new level.

    `langevin`: d = 2 D (ratio / |score|)^2, with the norm over the D numbers of one sample. `annealed`: d = 2 (ratio
    sigma)^2. `ratio` is the paper's r ("snr" in its code), `rounds` its M. Without a predictor (null) x / alpha stays
    unchanged until the last step, which returns Tweedie's x0: annealed Langevin dynamics. Clean data is not corrected.
    Source: Song et al. 2021 (arXiv:2011.13456), Algorithms 2 to 5.
    Differs: the paper's code divides |z| by |score|, both averaged over the batch; here samples are independent, and
    sqrt(D) replaces |z|. A step size that depends on x favours places with a large |score|: the invariant density is
    p |score|^2, whose variance is (D + 2) / D of that of a Gaussian p, so use `langevin` for images and `annealed` for
    few dimensions. d is at most sigma^2, since larger steps are unstable, and has no factor 1 - beta_t on VP (the
    factor is 1 on VE). The paper's code corrects before it predicts, so that its last noise stays in the sample.
    """

    predictor: Sampler[Any] | None = ReverseDiffusion()  # noqa: RUF009 - a frozen value
    corrector: Literal["langevin", "annealed"] = "langevin"
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.16
    rounds: Annotated[int, Field(ge=1)] = 1
    law_options = ({"corrector": "annealed"}, {"rounds": 2}, {"predictor": None})
    stochastic = True

    @property
    def order(self) -> int:
        return 1 if self.predictor is None else self.predictor.order

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.predictor is None else self.predictor.needs

    @property
    def discrete_only(self) -> bool:
        return self.predictor is not None and self.predictor.discrete_only

    @property
    def reaches_noise(self) -> bool:
        return self.predictor is not None and self.predictor.reaches_noise

    @property
    def syncs(self) -> bool:
        return self.predictor is not None and self.predictor.syncs

    @property
    def dtype(self) -> torch.dtype | None:
        return None if self.predictor is None else self.predictor.dtype

    @property
    def law_exemptions(self) -> dict[str, str]:
        """Laws that do not hold for the predictor or for Langevin steps of a fixed size, with the reason."""
        bias = "the bias of a Langevin step of fixed size does not fall with the number of levels (identity F6)"
        chosen = "the size of a Langevin step depends on the score, so no step is affine"
        own = chosen if self.corrector == "langevin" else bias
        return {**getattr(self.predictor, "law_exemptions", {}), "marginal": own, "point-mass-law": own}

    def init(self, levels: Sequence[Level]) -> Any:
        return None if self.predictor is None else self.predictor.init(levels)

    def nfe(self, n: int) -> int | None:
        """Return the evaluations of the predictor (or one for Tweedie's x0), plus `rounds` at each of the n - 1 noisy
        levels.
        """
        predicted = 1 if self.predictor is None else self.predictor.nfe(n)
        return None if predicted is None else predicted + (n - 1) * self.rounds

    def step(self, denoise: Denoiser, x: Tensor, t: Level, s: Level, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        if self.predictor is not None:
            x, state = self.predictor.step(denoise, x, t, s, state, noise)
        elif s.is_clean:
            x = denoise(x, t).step_to(s)
        else:
            x = float(s.alpha) / float(t.alpha) * x
        for _ in range(0 if s.is_clean else self.rounds):
            score = denoise(x, s).score
            size = self._size(score, float(s.sigma))
            x = x + size * score + (2.0 * size) ** 0.5 * noise(x)
        return x, state

    def _size(self, score: Tensor, sigma: float) -> Tensor | float:
        """Compute the step size d, one number for each sample, shaped to multiply x."""
        if self.corrector == "annealed":
            return 2.0 * (self.ratio * sigma) ** 2
        length: Tensor = torch.linalg.vector_norm(score.flatten(1), dim=1)
        size = 2.0 * score[0].numel() * (self.ratio / length.clamp(min=torch.finfo(score.dtype).tiny)) ** 2
        return size.clamp(max=sigma**2).reshape(-1, *(1,) * (score.ndim - 1))
