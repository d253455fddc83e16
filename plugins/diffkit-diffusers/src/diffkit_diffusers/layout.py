"""The parts of `unet` and what they are called elsewhere.

The three code bases build the same U-Net: ours numbers every part of a side in one list, diffusers numbers them by
level, OpenAI's puts a resolution block and what follows it into one entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Resample = Literal["conv", "resblock"]


@dataclass(frozen=True)
class Layout:
    """What of a U-Net decides the names of its weights; `attention` has one entry for each level, finest first."""

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
    """Every residual block, attention and conv between the first and the last conv, in the order of computation."""
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
