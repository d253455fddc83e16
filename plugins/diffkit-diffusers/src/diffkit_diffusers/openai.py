"""The U-Nets of OpenAI's improved-diffusion and guided-diffusion as `unet`: what their weights show, and their names.

Source: Nichol & Dhariwal 2021 (arXiv:2102.09672); Dhariwal & Nichol 2021 (arXiv:2105.05233); the authors' code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layout import Layout, parts
from .refusal import misnamed, not_a_model

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
ENDS = {
    "enter": "input_blocks.0.0",
    "embedding.linear1": "time_embed.0",
    "embedding.linear2": "time_embed.2",
    "norm": "out.0",
    "leave": "out.2",
}
TABLE = ("embedding.table.weight", "label_emb.weight")
GROUPS = 32


@dataclass(frozen=True)
class Heads:
    """What the weights do not show of attention: `count` heads or `width` channels each, and the order of q, k, v.

    `new_order` is guided-diffusion's use_new_attention_order: (q, k, v) of all heads, else each head's (q, k, v).
    """

    count: int = 1
    width: int | None = None
    new_order: bool = False


@dataclass(frozen=True)
class Shown:
    """What the weights show: `unet` options, names, channels in and out, number of labels."""

    options: Mapping[str, Any]
    layout: Layout
    channels: tuple[int, int]
    labels: int | None


def shown(weights: Mapping[str, Tensor], size: int, heads: Heads) -> Shown:
    """The architecture behind a checkpoint for images of size x size. Raises UsageError DK080 where it is no U-Net."""
    try:
        return _shown(weights, size, heads)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise not_a_model(f"this is no U-Net of improved- or guided-diffusion ({error})") from error


def _shown(weights: Mapping[str, Tensor], size: int, heads: Heads) -> Shown:
    ups = [name for name in weights if re.fullmatch(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.weight", name)]
    entries = {int(name.split(".")[1]) for name in weights if name.startswith("output_blocks.")}
    levels, blocks = len(ups) + 1, len(entries) // (len(ups) + 1) - 1
    if size % 2 ** (levels - 1):
        raise not_a_model(f"a model of {levels} levels cannot halve {size} so often", fix="give its --size")
    firsts = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
    channels = weights["time_embed.0.weight"].shape[1]
    widths = [weights[f"{first}.0.out_layers.3.weight"].shape[0] for first in firsts]
    if channels % GROUPS or any(width % channels for width in widths):
        raise not_a_model(f"network unet cannot express widths {widths} with a base of {channels}")
    attends = tuple(f"{first}.1.norm.weight" in weights for first in firsts)
    resblock = any(".in_layers." in name for name in ups)
    kind = "resblock" if resblock else "conv"
    scale_shift = weights[f"{firsts[0]}.0.emb_layers.1.weight"].shape[0] == 2 * widths[0]
    inside, outside = weights["input_blocks.0.0.weight"].shape[1], weights["out.2.weight"].shape[0]
    options = {
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": blocks,
        "attention": [size >> level for level, here in enumerate(attends) if here],
        **({"head_channels": heads.width} if heads.width else {"heads": heads.count}),
        "time": "scale-shift" if scale_shift else "add",
        "embedding": "openai",
        "downsample": kind,
        "upsample": "resblock" if resblock else "nearest",
        "initialisation": "openai",
        "groups": GROUPS,
        "norm_eps": 1e-5,
    }
    rows = weights["label_emb.weight"].shape[0] if "label_emb.weight" in weights else None
    layout = Layout(blocks, attends, True, "resblock" if resblock else "conv", "resblock" if resblock else "conv")
    return Shown(options, layout, (inside, outside), rows)


def openai_weights(theirs: Mapping[str, Tensor], layout: Layout, heads: Heads) -> dict[str, Tensor]:
    """The state dict of OpenAI's UNetModel -> that of `unet`, float32.

    The table of labels gets a null class, a row of 0. Raises CheckpointError DK603 unless every tensor has a place, and
    every place a tensor.
    """
    left = dict(theirs)
    ours = {}
    for here, there in _modules(layout):
        if here.endswith("shortcut") and f"{there}.weight" not in left:
            continue
        for kind in ("weight", "bias"):
            if f"{there}.{kind}" not in left:
                raise misnamed([f"{there}.{kind}"], [])
            tensor = left.pop(f"{there}.{kind}").float()
            attention = here.endswith((".qkv", ".attention.out"))
            tensor = tensor.squeeze(-1) if attention and kind == "weight" else tensor  # a conv of width 1
            ours[f"{here}.{kind}"] = _reordered(tensor, heads) if here.endswith(".qkv") else tensor
    if TABLE[1] in left:
        table = left.pop(TABLE[1]).float()
        ours[TABLE[0]] = torch.cat([table, torch.zeros_like(table[:1])])
    if left:
        raise misnamed([], sorted(left))
    return ours


def _reordered(qkv: Tensor, heads: Heads) -> Tensor:
    """Rows (heads, 3, width) -> (3, heads, width), as `unet` has them."""
    if heads.new_order:
        return qkv
    count = len(qkv) // 3 // heads.width if heads.width else heads.count
    if len(qkv) % (3 * count):
        raise not_a_model(f"{count} heads do not divide {len(qkv) // 3} channels", fix="give its --heads")
    return qkv.reshape(count, 3, -1, *qkv.shape[1:]).transpose(0, 1).reshape(qkv.shape)


def _modules(layout: Layout) -> Iterator[tuple[str, str]]:
    yield from ENDS.items()
    for part in parts(layout):
        inner = {"residual": RESIDUAL, "attention": ATTENTION, "conv": None}[part.kind]
        if inner is None:
            yield part.ours, part.openai
        else:
            yield from ((f"{part.ours}.{here}", f"{part.openai}.{there}") for here, there in inner.items())
