"""The weights of diffusers' UNet2DModel under the names of diffkit's `unet`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_emb_proj": "time",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "shortcut",
}
ENDS = {
    "conv_in": "enter",
    "time_embedding.linear_1": "embedding.linear1",
    "time_embedding.linear_2": "embedding.linear2",
    "conv_norm_out": "norm",
    "conv_out": "leave",
}


def unet_weights(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """UNet2DModel's state dict -> UNet's, whose `down` and `up` are flat lists; q, k and v are fused into one layer.

    Every tensor of `theirs` is used once, or KeyError is raised.
    """
    left = dict(theirs)
    ours: dict[str, Tensor] = {}

    def move(source: str, target: str) -> None:
        for kind in ("weight", "bias"):
            ours[f"{target}.{kind}"] = left.pop(f"{source}.{kind}")

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix + ".") for key in left)

    def resnet(source: str, target: str) -> None:
        for their_name, our_name in RESNET.items():
            if has(f"{source}.{their_name}"):
                move(f"{source}.{their_name}", f"{target}.{our_name}")

    def attention(source: str, target: str) -> None:
        move(f"{source}.group_norm", f"{target}.norm")
        for kind in ("weight", "bias"):
            qkv = [left.pop(f"{source}.to_{letter}.{kind}") for letter in "qkv"]
            ours[f"{target}.qkv.{kind}"] = torch.cat(qkv)
        move(f"{source}.to_out.0", f"{target}.out")

    def side(their_name: str, our_name: str, resample: str) -> None:
        place, stage = 0, 0
        while has(f"{their_name}.{stage}"):
            source, layer = f"{their_name}.{stage}", 0
            while has(f"{source}.resnets.{layer}"):
                resnet(f"{source}.resnets.{layer}", f"{our_name}.{place}.block")
                if has(f"{source}.attentions.{layer}"):
                    attention(f"{source}.attentions.{layer}", f"{our_name}.{place}.attention")
                place, layer = place + 1, layer + 1
            if has(f"{source}.{resample}.0.conv"):
                move(f"{source}.{resample}.0.conv", f"{our_name}.{place}.conv")
                place += 1
            elif has(f"{source}.{resample}.0"):
                resnet(f"{source}.{resample}.0", f"{our_name}.{place}")
                place += 1
            stage += 1

    for source, target in ENDS.items():
        move(source, target)
    side("down_blocks", "down", "downsamplers")
    side("up_blocks", "up", "upsamplers")
    resnet("mid_block.resnets.0", "middle.0.block")
    if has("mid_block.attentions.0"):
        attention("mid_block.attentions.0", "middle.0.attention")
    resnet("mid_block.resnets.1", "middle.1")
    if "class_embedding.weight" in left:
        ours["embedding.table.weight"] = left.pop("class_embedding.weight")
    if left:
        raise KeyError(f"no place for {sorted(left)}")
    return ours
