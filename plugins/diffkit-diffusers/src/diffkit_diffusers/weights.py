"""The weights of diffusers' UNet2DModel under the names of `unet`, and back; no number changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .layout import Layout, parts
from .refusal import misnamed

RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
}
ATTENTION = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",)}
ENDS = {
    "enter": "conv_in",
    "embedding.linear1": "time_embedding.linear_1",
    "embedding.linear2": "time_embedding.linear_2",
    "norm": "conv_norm_out",
    "leave": "conv_out",
}
TABLE = ("embedding.table.weight", "class_embedding.weight")


def unet_weights(theirs: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """UNet2DModel's state dict -> that of `unet`; q, k and v are fused into one layer.

    Raises CheckpointError DK603 unless every tensor has a place, and every place a tensor.
    """
    left = dict(theirs)
    ours = {}
    for here, there in _names(layout, theirs):
        found = [left.pop(name) for name in there if name in left]
        if len(found) < len(there):
            raise misnamed([name for name in there if name not in theirs], [])
        ours[here] = found[0] if len(found) == 1 else torch.cat(found)
    if left:
        raise misnamed([], sorted(left))
    return ours


def diffusers_weights(ours: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The state dict of `unet` -> UNet2DModel's. The inverse of `unet_weights`."""
    left = dict(ours)
    theirs = {}
    for here, there in _names(layout, ours):
        if here not in left:
            raise misnamed([here], [])
        for name, piece in zip(there, left.pop(here).chunk(len(there))):
            theirs[name] = piece
    if left:
        raise misnamed([], sorted(left))
    return theirs


def _names(layout: Layout, known: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(our name, their names) of every tensor; of those that need not exist, the ones that are `known`."""
    for here, there in _modules(layout):
        if here.endswith("shortcut") and not {f"{here}.weight", f"{there[0]}.weight"} & known.keys():
            continue
        for kind in ("weight", "bias"):
            yield f"{here}.{kind}", tuple(f"{name}.{kind}" for name in there)
    if set(TABLE) & known.keys():
        yield TABLE[0], TABLE[1:]


def _modules(layout: Layout) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from ((here, (there,)) for here, there in ENDS.items())
    for part in parts(layout):
        if part.kind == "residual":
            yield from ((f"{part.ours}.{here}", (f"{part.diffusers}.{there}",)) for here, there in RESIDUAL.items())
        elif part.kind == "attention":
            for here, several in ATTENTION.items():
                yield f"{part.ours}.{here}", tuple(f"{part.diffusers}.{there}" for there in several)
        else:
            yield part.ours, (part.diffusers,)
