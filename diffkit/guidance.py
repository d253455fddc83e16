"""Guidance: from a denoiser to another one. It composes with every sampler, parameterization and other guidance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from .denoiser import Denoiser


class Guidance(ABC):
    """Implement `__call__`. `needs_null` says that it asks the network without a label too, which training must teach
    by dropping labels."""

    needs_null: bool = False

    @abstractmethod
    def __call__(self, denoise: Denoiser) -> Denoiser:
        """The guided denoiser; it calls `denoise` as often as it needs."""


def guide(denoise: Denoiser, guidance: Guidance | Sequence[Guidance]) -> Denoiser:
    """The denoiser under all of `guidance`, one or several; the last one listed acts last on the estimate."""
    for wrap in [guidance] if isinstance(guidance, Guidance) else guidance:
        denoise = wrap(denoise)
    return denoise
