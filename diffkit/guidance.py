"""Guidance: functions that change a denoiser, and compose with every sampler and parameterization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from .denoiser import Denoiser
from .errors import ArgumentError
from .interface import attribute


class Guidance(ABC):
    """Base of guidance. Implement `__call__`. An option `scale` of a comparison means no guidance if it is 1."""

    @attribute
    def needs_null(self) -> bool:
        """Whether the guidance evaluates the network without a label, which requires label dropout in training."""
        return False

    @attribute
    def limits_range(self) -> bool:
        """Whether the guidance only moves x0 into the range of the data, as clipping does; default False.

        Such a guidance leaves the model a distribution, whose likelihood can be computed.
        """
        return False

    @attribute
    def renoises(self) -> bool:
        """Whether eps is the noise that the next level receives and not that of x, as in CFG++; default False.

        Otherwise the guided estimate is consistent with x: alpha x0 + sigma eps = x.
        """
        return False

    @abstractmethod
    def __call__(self, denoise: Denoiser) -> Denoiser:
        """Return the guided denoiser, which may call `denoise` any number of times."""


def guide(denoise: Denoiser, guidance: Guidance | Sequence[Guidance]) -> Denoiser:
    """Apply one or several guidances to a denoiser; the last one changes the estimate last.

    Raises ArgumentError if `guidance` holds anything else, such as the name of a guidance.
    """
    for wrap in [guidance] if isinstance(guidance, Guidance) else guidance:
        if not isinstance(wrap, Guidance):
            raise ArgumentError.of(
                "guide(denoise, guidance): argument 2 (`guidance`)",
                "a Guidance or a list of them",
                wrap,
                'build it, such as build("guidance", "cfg", scale=2.0)',
            )
        denoise = wrap(denoise)
    return denoise
