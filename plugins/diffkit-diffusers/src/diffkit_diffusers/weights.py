"""The weights of the U-Net under its three names: those of `unet`, of diffusers' UNet2DModel and of OpenAI's code.

The three code bases build the same U-Net: `unet` numbers all parts of a side in one list, diffusers numbers them by
level, OpenAI's code puts a residual block and the attention after it into one entry. Conversion changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .errors import misnamed

Resample = Literal["conv", "resblock"]
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
LABEL_TABLE = ("embedding.table.weight", "class_embedding.weight")


@dataclass(frozen=True)
class Layout:
    """Options of a U-Net that decide the names of its weights; `attention`: one entry per level, finest first."""

    blocks: int
    attention: tuple[bool, ...]
    middle_attention: bool = True
    downsample: Resample = "conv"
    upsample: Resample = "conv"


@dataclass(frozen=True)
class Part:
    """One part with weights, under its three names."""

    kind: Literal["residual", "attention", "conv"]
    ours: str
    diffusers: str
    openai: str


def parts(layout: Layout) -> Iterator[Part]:
    """Yield all residual blocks, attentions and convs between the first and the last conv, in order of computation."""
    yield from _down(layout)
    yield Part("residual", "middle.0.block", "mid_block.resnets.0", "middle_block.0")
    if layout.middle_attention:
        yield Part("attention", "middle.0.attention", "mid_block.attentions.0", "middle_block.1")
    yield Part("residual", "middle.1", "mid_block.resnets.1", "middle_block.2")
    yield from _up(layout)


def _down(layout: Layout) -> Iterator[Part]:
    place = 0
    for level, attends in enumerate(layout.attention):
        theirs = f"down_blocks.{level}"
        for i in range(layout.blocks):
            yield from _block(attends, f"down.{place}", theirs, i, f"input_blocks.{place + 1}")
            place += 1
        if level < len(layout.attention) - 1:
            openai = f"input_blocks.{place + 1}.0"
            if layout.downsample == "resblock":
                yield Part("residual", f"down.{place}", f"{theirs}.downsamplers.0", openai)
            else:
                yield Part("conv", f"down.{place}.conv", f"{theirs}.downsamplers.0.conv", f"{openai}.op")
            place += 1


def _up(layout: Layout) -> Iterator[Part]:
    place = entry = 0
    for stage, attends in enumerate(reversed(layout.attention)):
        theirs = f"up_blocks.{stage}"
        for i in range(layout.blocks + 1):
            yield from _block(attends, f"up.{place}", theirs, i, f"output_blocks.{entry}")
            place, entry = place + 1, entry + 1
        if stage < len(layout.attention) - 1:
            openai = f"output_blocks.{entry - 1}.{2 if attends else 1}"
            if layout.upsample == "resblock":
                yield Part("residual", f"up.{place}", f"{theirs}.upsamplers.0", openai)
            else:
                yield Part("conv", f"up.{place}.conv", f"{theirs}.upsamplers.0.conv", f"{openai}.conv")
            place += 1


def _block(attends: bool, ours: str, theirs: str, i: int, openai: str) -> Iterator[Part]:
    yield Part("residual", f"{ours}.block", f"{theirs}.resnets.{i}", f"{openai}.0")
    if attends:
        yield Part("attention", f"{ours}.attention", f"{theirs}.attentions.{i}", f"{openai}.1")


def unet_weights(theirs: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Convert UNet2DModel's state dict to that of `unet`; q, k and v are fused into one layer.

    Raises CheckpointError DK603 if a tensor is missing or unexpected.
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
    """Convert the state dict of `unet` to UNet2DModel's: the inverse of `unet_weights`."""
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
    """Yield (name in `unet`, names in diffusers) of all tensors; optional tensors only if they are in `known`."""
    for here, there in _modules(layout):
        if here.endswith("shortcut") and not {f"{here}.weight", f"{there[0]}.weight"} & known.keys():
            continue
        for kind in ("weight", "bias"):
            yield f"{here}.{kind}", tuple(f"{name}.{kind}" for name in there)
    if set(LABEL_TABLE) & known.keys():
        yield LABEL_TABLE[0], LABEL_TABLE[1:]


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
