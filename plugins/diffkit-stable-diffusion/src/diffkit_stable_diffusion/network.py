"""The network of Stable Diffusion: a UNet2DConditionModel of diffusers, which attends to a text."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from diffkit_diffusers.errors import REFUSALS
from pydantic import JsonValue
from torch import Tensor, nn

from diffkit import Network, RecipeError, Shape, UsageError

from .lora_files import merge

TEXT = "text"
FROM_SHAPE = ("in_channels", "out_channels", "cross_attention_dim", "sample_size")
"""Arguments of UNet2DConditionModel that follow from the data and its conditions."""
NEED_INPUTS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)
"""Arguments that add inputs which no condition supplies, as those of Stable Diffusion XL; they must be null."""


class TextUNet(Network):
    """UNet2DConditionModel of diffusers with the condition `text`, and channels of `concat` after those of x.

    `config` holds arguments of the class; channels, size and the width of the text follow from the data and its
    conditions. Padded tokens are attended to, as in Stable Diffusion, unless the conditioner gives a mask.

    Raises RecipeError DK140 for arguments that the class does not have or that need further inputs, and ValueError if
    the data has classes, no text, or is not images.
    Source: Rombach et al. 2022 (arXiv:2112.10752), sec. 3.3.
    """

    law_exemptions: ClassVar[Mapping[str, str]] = {"scale-shift": "the law calls a network without a text"}
    law_base: ClassVar[Mapping[str, JsonValue]] = {
        "config": {
            "block_out_channels": [8, 16],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 2,
        }
    }

    def __init__(self, shape: Shape, config: dict[str, JsonValue] | None = None) -> None:
        super().__init__()
        if shape.classes is not None or set(shape.conditions) != {TEXT} or len(shape.size) != 2:
            raise ValueError(f"the network takes images (H, W) with the condition {TEXT} alone, got {shape}")
        self.extra_channels = shape.extra_channels
        model_class = importlib.import_module("diffusers").UNet2DConditionModel
        given = _checked(model_class, config or {})
        given["in_channels"] = shape.in_channels + shape.extra_channels
        given["out_channels"] = shape.out_channels
        given["cross_attention_dim"] = shape.conditions[TEXT][1]
        given["sample_size"] = list(shape.size)
        try:
            self.model = model_class(**given)
        except REFUSALS as error:
            message = f"UNet2DConditionModel does not accept this config: {error}"
            fix = "compare it with unet/config.json of a published model"
            raise RecipeError(message, code="DK140", fix=fix) from error

    def block_modules(self) -> Iterable[nn.Module]:
        """Return the blocks of each level."""
        return [*self.model.down_blocks, self.model.mid_block, *self.model.up_blocks]

    def adapt(self, weights: Mapping[str, Tensor], factor: float) -> Collection[str]:
        """Merge the updates of the U-Net in a LoRA file; see `lora.merge`."""
        return merge(self.model, "unet", weights, factor)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | None = None,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """Apply the model to x.

        Args:
            x: (B, C, H, W).
            c_noise: (B,), the timestep of diffusers.
            label: must be None.
            text: (B, L, D), which must be given: a text that is absent has the value of an empty one.
            text_mask: (B, L) bool, False for tokens that are not attended to; default: all are.
            concat: (B, C', H, W), such as mask and masked latents; default zeros.

        Returns:
            (B, C'', H, W).

        Raises:
            UsageError: DK041, a condition is missing or does not fit.
        """
        channels = self.extra_channels
        if text is None or label is not None:
            wrong = "requires the condition text" if text is None else "takes no label"
            raise UsageError(f"this network {wrong}", code="DK041", fix="pass text=..., (B, L, D), and no label")
        if concat is None:
            concat = x.new_zeros(len(x), channels, *x.shape[2:])
        if concat.shape[1] != channels:
            message = f"`concat` has {concat.shape[1]} channels, but the network was built for {channels}"
            raise UsageError(message, code="DK041", fix=f"pass {channels} channels (shape.extra_channels)")
        out: Tensor = self.model(
            torch.cat([x, concat.to(x.dtype)], 1) if channels else x,
            timestep=c_noise,
            encoder_hidden_states=text.to(x.dtype),
            encoder_attention_mask=text_mask,
            return_dict=False,
        )[0]
        return out


def _checked(model_class: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of the class. Raises RecipeError DK140 for those that it or the network does not take."""
    known = [name for name in inspect.signature(model_class.__init__).parameters if name != "self"]
    for name, value in config.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            message, fix = f"UNet2DConditionModel has no argument {name[:64]!r}", "remove it from config"
            hint = f'did you mean "{near[0]}"?' if near else None
            raise RecipeError(message, code="DK140", fix=fix, hint=hint)
        if name in FROM_SHAPE:
            message = f"config: {name} follows from the data and its conditions"
            raise RecipeError(message, code="DK140", fix="remove it from config")
        if name in NEED_INPUTS and value is not None:
            message = f"config: {name} adds an input to the model that no condition supplies"
            raise RecipeError(
                message, code="DK140", fix="choose a model with a text alone, such as Stable Diffusion 1 or 2"
            )
    return dict(config)
