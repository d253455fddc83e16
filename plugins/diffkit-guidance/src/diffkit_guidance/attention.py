"""Perturbed-attention guidance: away from the estimate of the network whose self-attention sees each pixel alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as fn
from torch.overrides import TorchFunctionMode

from diffkit import Denoiser, Estimate, Guidance, Level, evaluate


@dataclass(frozen=True)
class PerturbedAttention(Guidance):
    """Extrapolate from an estimate with perturbed self-attention: perturbed + scale (estimate - perturbed).

    The attention maps of some layers become the identity, so that their output is the values v, and the estimate loses
    structure. This needs neither labels nor training. Both estimates are evaluated in one call. A network without
    self-attention is not changed. `scale` is 1 + s of the paper; 1 turns the guidance off.

    scale    how far to go from the perturbed estimate
    layers   numbers of the self-attention layers in the order of their evaluation, from 0; all by default. The paper
             perturbs those in the middle

    Source: Ahn et al. 2024 (arXiv:2403.17377), sec. 4.2.
    """

    scale: Annotated[float, Field(ge=0)] = 3.0
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    law_exemptions = {  # noqa: RUF012 - never changed
        "options-used": "the laws evaluate oracles, which have no attention: see the law perturbed-attention-formula",
    }

    def __call__(self, denoise: Denoiser) -> Denoiser:
        if self.scale == 1.0:
            return denoise

        def guided(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
            with _Perturbed(2 * len(x), self.layers) as mode:
                estimates = evaluate(denoise, x, level, [cond, cond])
            perturbed, plain = estimates
            if not mode.count:
                return plain
            return perturbed.interpolate(plain, self.scale).with_aux(unguided=plain.x0)

        return guided


class _Perturbed(TorchFunctionMode):
    """Replace the result of self-attention by v in the first half of a batch, in the layers of these numbers."""

    def __init__(self, rows: int, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.rows, self.layers, self.count = rows, layers, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not fn.scaled_dot_product_attention:
            return result
        q, k, v = args[:3]
        if q.shape[-2] != k.shape[-2] or len(q) != self.rows:
            return result
        index, self.count = self.count, self.count + 1
        if self.layers and index not in self.layers:
            return result
        half = len(q) // 2
        return torch.cat([v[:half], result[half:]])
