"""Tiles: apply the stages of a network to overlapping pieces of a large map, with the result of the whole map."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor, nn

MARGIN = 4
"""Positions next to a cut that are discarded if the overlap allows it: the usual reach of a stage is not greater."""

_ONE_AT_A_TIME = threading.Lock()
"""Held as long as normalizations of a network use the statistics of whole maps."""


@dataclass(frozen=True)
class Stage:
    """A part of a network.

    apply    the function of the part
    local    whether each output depends on inputs at most `reach` positions away, except through `norms`; a part that
             is not local, such as attention, receives the whole map
    reach    positions next to a cut that are discarded if the overlap allows it; None: half of the overlap
    norms    group normalizations in the part, on maps of the size of its input, in the order of their calls
    """

    apply: Callable[[Tensor], Tensor]
    local: bool = True
    norms: tuple[nn.GroupNorm, ...] = ()
    reach: int | None = MARGIN

    @classmethod
    def of(cls, part: nn.Module) -> Stage:
        """Return the local stage of a module, whose norms are registered in the order of their calls."""
        return cls(part, norms=tuple(one for one in part.modules() if isinstance(one, nn.GroupNorm)))


class Staged(ABC):
    """Base of codecs that consist of stages, so that they can be computed in tiles."""

    @abstractmethod
    def encoder_stages(self) -> list[Stage]:
        """Return the stages from x to the mean of the posterior, followed by its std, if any, as further channels."""

    @abstractmethod
    def decoder_stages(self) -> list[Stage]:
        """Return the stages from z to x."""


@dataclass(frozen=True)
class Piece:
    """One piece of an axis: its positions, and the share of each in the result: (stop - start,)."""

    start: int
    stop: int
    share: Tensor


def cut(length: int, side: int, overlap: int, reach: int | None = MARGIN) -> list[Piece]:
    """Cut an axis into pieces that overlap; the shares of a position sum to 1.

    Within an overlap the shares change linearly, after a margin of `reach` positions, or half of the overlap, in which
    a piece has the share 0.

    Args:
        length: Positions of the axis.
        side: Positions of a piece; the last one is shorter.
        overlap: Positions that two neighbours share, at most half of `side`.
        reach: Positions of the margin; None takes half of the overlap.

    Returns:
        The pieces in order; a single one if the axis is not longer than `side`.
    """
    step = side - overlap
    starts = [0, *range(step, length - overlap, step)] if length > side else [0]
    rises = [_rise(length, start, overlap, reach) for start in starts[1:]]
    ones = torch.ones(length)
    shares = [up * (1 - down) for up, down in pairwise([ones, *rises, 0 * ones])]
    stops = [min(start + side, length) for start in starts]
    return [Piece(start, stop, share[start:stop]) for start, stop, share in zip(starts, stops, shares, strict=True)]


def _rise(length: int, start: int, overlap: int, reach: int | None) -> Tensor:
    """Return the share of all pieces after a cut: 0 before the overlap from `start` on, 1 after it: (length,)."""
    margin = overlap // 2 if reach is None else min(reach, overlap // 2)
    span, position = overlap - 2 * margin, torch.arange(length) - (start + margin)
    return ((position + 0.5) / span).clamp(0, 1) if span else (position >= 0).float()


def in_tiles(stages: Sequence[Stage], x: Tensor, coarse: int, side: int, overlap: int) -> Tensor:
    """Apply stages one after the other, each to tiles of its input: the result is that of the whole map.

    Normalizations use the mean and the variance of the whole map, which are measured over the tiles first, and an
    overlap of twice the reach includes all that a local stage reads. Only the tile that is computed lies on the
    device of x; maps between stages lie in the memory of the CPU.

    Args:
        stages: The parts of the network.
        x: The input: (B, C, H, W).
        coarse: The width of the coarsest map, the unit of `side` and `overlap`: a map n times wider has tiles n times
            wider.
        side: Height and width of a tile on the coarsest map.
        overlap: Positions that two neighbours share on the coarsest map, at most half of `side`.

    Returns:
        The output of the last stage: (B, C', H', W'), on the device of x.
    """
    device = x.device
    for stage in stages:
        unit = x.shape[-1] // coarse
        if stage.local and max(x.shape[-2:]) > side * unit:
            x = _stage_in_tiles(stage, x, device, side * unit, overlap * unit)
        else:
            x = stage.apply(x.to(device))
    return x.to(device)


def _stage_in_tiles(stage: Stage, x: Tensor, device: torch.device, side: int, overlap: int) -> Tensor:
    def places(height: int, width: int, scale: float = 1.0) -> list[tuple[Piece, Piece]]:
        lengths = int(side * scale), int(overlap * scale)
        return list(product(cut(height, *lengths, stage.reach), cut(width, *lengths, stage.reach)))

    def at(row: Piece, column: Piece) -> Tensor:
        return x[..., row.start : row.stop, column.start : column.stop].to(device)

    x, out = x.cpu(), torch.empty(0)
    inputs = outputs = places(x.shape[-2], x.shape[-1])
    with _ONE_AT_A_TIME, ExitStack() as fixed:
        for norm in stage.norms:
            mean, variance = _measured(stage, norm, ((at(*one), _share(*one).to(device)) for one in inputs))
            fixed.enter_context(_normalized_by(norm, mean, variance))
        for index, one in enumerate(inputs):
            y = stage.apply(at(*one))
            if index == 0:
                scale = y.shape[-1] / (one[1].stop - one[1].start)
                height, width = (int(length * scale) for length in x.shape[-2:])
                out, outputs = y.new_zeros(*y.shape[:2], height, width, device="cpu"), places(height, width, scale)
            row, column = outputs[index]
            part = y.float() * _share(row, column).to(device)
            out[..., row.start : row.stop, column.start : column.stop] += part.to(y.dtype).cpu()
    return out


def _share(row: Piece, column: Piece) -> Tensor:
    return row.share[:, None] * column.share


class _Reached(Exception):  # noqa: N818 - control flow
    """Ends a stage at the input of a normalization."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.h = h


def _measured(stage: Stage, norm: nn.GroupNorm, tiles: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return mean and variance of what a normalization receives, over the whole map: (B, groups) float64 each."""

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    sums: list[Tensor] = []
    with norm.register_forward_pre_hook(stop):
        for x, share in tiles:
            try:
                stage.apply(x)
            except _Reached as reached:
                h = _grouped(norm, reached.h.double())
                weighted = h * share
                count = (share.double().sum() * h.shape[2]).expand(h.shape[:2])
                sums.append(torch.stack([*(one.sum((2, 3, 4)) for one in (weighted, weighted * h)), count]))
    total = torch.stack(sums).sum(0)
    mean = total[0] / total[2]
    return mean, total[1] / total[2] - mean.square()


@contextmanager
def _normalized_by(norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> Iterator[None]:
    """Let a normalization use this mean and variance: (B, groups) each."""
    scale = (variance + norm.eps).rsqrt()

    def normalized(_: nn.Module, inputs: tuple[Tensor, ...], own: Tensor) -> Tensor:
        h = _grouped(norm, inputs[0].float())
        centred = (h - mean.float()[:, :, None, None, None]) * scale.float()[:, :, None, None, None]
        return (centred.flatten(1, 2) * norm.weight.float()[:, None, None] + norm.bias.float()[:, None, None]).to(own)

    with norm.register_forward_hook(normalized):
        yield


def _grouped(norm: nn.GroupNorm, h: Tensor) -> Tensor:
    """Return h: (B, C, H, W) as (B, groups, C / groups, H, W)."""
    return h.reshape(len(h), norm.num_groups, -1, *h.shape[2:])
