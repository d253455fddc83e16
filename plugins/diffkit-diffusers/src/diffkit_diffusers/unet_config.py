"""Convert the configuration of diffusers' UNet2DModel to options of `unet`, and back."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from diffkit import Network, Shape

from .errors import inexpressible, not_a_model
from .options import IGNORABLE, defaults_of, notes_of, options_in, unknown_notes
from .weights import Layout, Resample

Count = Annotated[int, Field(ge=1, le=1 << 16)]
One = Annotated[float, Field(ge=1, le=1)]
RESAMPLE: dict[str, Resample] = {"conv": "conv", "resnet": "resblock"}
LEGACY_PREFIX = "UNetRes"
"""Prefix of the names of blocks until 2022, such as UNetResDownBlock2D; diffusers removes it too."""
AVERAGE_OPTIONS = [
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
]
"""Options of diffusers' EMAModel, which it writes into the config of an averaged model; the network ignores them."""


def _current_name(block: object) -> object:
    return block.removeprefix(LEGACY_PREFIX) if isinstance(block, str) else block


def _lower_case(name: object) -> object:
    return name.lower() if isinstance(name, str) else name


Down = Annotated[Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"], BeforeValidator(_current_name)]
Up = Annotated[Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"], BeforeValidator(_current_name)]


class UNet2D(BaseModel):
    """The configurations of a UNet2DModel that `unet` can express; the defaults are those of diffusers."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    sample_size: Count | tuple[Count, Count] | None = None
    in_channels: Count = 3
    out_channels: Count = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Count | None = None
    freq_shift: Literal[0, 1] = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[Down, ...]
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: tuple[Up, ...]
    block_out_channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=16)]
    layers_per_block: Count = 2
    mid_block_scale_factor: One = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    act_fn: Annotated[Literal["silu", "swish"], BeforeValidator(_lower_case)] = "silu"
    attention_head_dim: Count | None = 8
    norm_num_groups: Count = 32
    attn_norm_num_groups: Count | None = None
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: Count | None = None
    num_train_timesteps: Count | None = None  # for the time embedding "learned" only

    @model_validator(mode="after")
    def _fits(self) -> UNet2D:
        attends = self.attends
        if tuple(_attends(kind) for kind in reversed(self.up_block_types)) != attends:
            raise ValueError("up_block_types do not mirror down_block_types")
        if len(self.block_out_channels) != len(attends):
            raise ValueError("block_out_channels and down_block_types differ in length")
        for option in ("downsample_type", "upsample_type"):
            if len(self._resampling(option)) > 1:
                raise ValueError(
                    f"levels resample in different ways: {option} holds for blocks with attention only, other blocks "
                    "have a convolution, those named Resnet a residual block"
                )
        first = self.block_out_channels[0]
        if any(channels % first for channels in self.block_out_channels):
            raise ValueError(f"block_out_channels must be multiples of the first, {first}")
        if self.time_embedding_dim not in (None, 4 * first):
            raise ValueError(f"time_embedding_dim must be 4 x {first}")
        if self.flip_sin_to_cos != (self.freq_shift == 0):
            raise ValueError("flip_sin_to_cos and freq_shift must be false, 1 (Ho et al.) or true, 0 (OpenAI)")
        unset = self.norm_num_groups if self.resnet_time_scale_shift == "default" else None
        if self.add_attention and (self.attn_norm_num_groups or unset) != self.norm_num_groups:
            raise ValueError("attn_norm_num_groups must equal norm_num_groups")
        return self

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether there is attention, for each level, finest first."""
        return tuple(_attends(kind) for kind in self.down_block_types)

    def _resampling(self, option: Literal["downsample_type", "upsample_type"]) -> set[Resample]:
        """The ways in which the levels resample; the last block of each side does not."""
        kinds = self.down_block_types if option == "downsample_type" else self.up_block_types
        plain: dict[bool, Resample] = {True: "resblock", False: "conv"}
        return {
            RESAMPLE[getattr(self, option)] if _attends(kind) else plain[kind.startswith("Resnet")]
            for kind in kinds[:-1]
        }

    @property
    def size(self) -> tuple[int, int] | None:
        """The size (H, W) of the images, or None if the config has no `sample_size`."""
        size = self.sample_size
        return (size, size) if isinstance(size, int) else size

    @property
    def layout(self) -> Layout:
        """The layout, which decides the names of the weights."""
        (down,) = self._resampling("downsample_type") or {"conv"}
        (up,) = self._resampling("upsample_type") or {"conv"}
        return Layout(self.layers_per_block, self.attends, self.add_attention, down, up)


def _attends(kind: str) -> bool:
    return kind.startswith("Attn")


def read_config(config: Mapping[str, Any], ignore: Collection[str] = ()) -> UNet2D:
    """Read the configuration of a UNet2DModel (config.json); missing entries have diffusers' defaults.

    Entries named in `ignore` are not read. Raises UsageError DK081, which lists the entries that `unet` cannot express.
    """
    from diffusers import UNet2DModel

    name = config.get("_class_name", "UNet2DModel")
    if name != "UNet2DModel":
        raise inexpressible(f"network unet cannot express a {str(name)[:64]}, only a UNet2DModel")
    given = options_in(config, ignore)
    if notes := unknown_notes(given, {*UNet2D.model_fields, *AVERAGE_OPTIONS}):
        raise inexpressible("network unet cannot express this UNet2DModel", fix=IGNORABLE, notes=notes)
    try:
        return UNet2D.model_validate_json(json.dumps({**defaults_of(UNet2DModel), **given}))
    except ValidationError as error:
        raise inexpressible("network unet cannot express this UNet2DModel", notes=notes_of(error)) from error


def options_of(config: UNet2D, size: Sequence[int]) -> dict[str, Any]:
    """Build options of `unet` for maps of `size` (H, W). Raises UsageError DK080 if a side cannot be halved."""
    levels = len(config.attends)
    if any(side % 2 ** (levels - 1) for side in size):
        raise not_a_model(f"a model of {levels} levels cannot halve size {tuple(size)} {levels - 1} times")
    first = config.block_out_channels[0]
    attends = any(config.attends) or config.add_attention
    return {
        "channels": first,
        "multipliers": [channels // first for channels in config.block_out_channels],
        "blocks": config.layers_per_block,
        "attention": [max(size) >> level for level, here in enumerate(config.attends) if here],
        **({"head_channels": config.attention_head_dim} if attends and config.attention_head_dim else {}),
        "middle_attention": config.add_attention,
        "dropout": config.dropout,
        "time": "scale-shift" if config.resnet_time_scale_shift == "scale_shift" else "add",
        "embedding": "openai" if config.flip_sin_to_cos else "ho",
        "downsample": "resblock"
        if config.layout.downsample == "resblock"
        else ("conv" if config.downsample_padding else "conv-asymmetric"),
        "upsample": "resblock" if config.layout.upsample == "resblock" else "nearest",
        "initialisation": "torch",
        "groups": config.norm_num_groups,
        "norm_eps": config.norm_eps,
    }


def config_of(network: Network, shape: Shape, options: Mapping[str, Any]) -> UNet2D:
    """Build the configuration of the UNet2DModel that computes the same as a `unet`.

    Args:
        network: the `unet`.
        shape: the shape that the network was built for.
        options: all options of the network, defaults included.

    Returns:
        The configuration.

    Raises:
        UsageError: DK081, UNet2DModel cannot express the network.
    """
    if options["downsample"] == "average" or options["upsample"] in ("bilinear", "transposed"):
        wrong = options["downsample"] if options["downsample"] == "average" else options["upsample"]
        raise inexpressible(f"diffusers' UNet2DModel has no resampling `{wrong}`")
    if options["augment"]:
        raise inexpressible("diffusers' UNet2DModel takes no augmentation labels")
    if options["patch"] > 1:
        raise inexpressible("diffusers' UNet2DModel divides no images into patches")
    widths = [options["channels"] * multiplier for multiplier in options["multipliers"]]
    attends = [max(shape.size) >> level in options["attention"] for level in range(len(widths))]
    groups = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    if len(groups) > 1:
        raise inexpressible(
            f"diffusers' UNet2DModel has one number of groups for all layers, but this network has {sorted(groups)}",
            fix="train with network.groups: a number that divides all widths",
        )
    if widths[0] != options["channels"]:
        raise inexpressible("diffusers' UNet2DModel requires multipliers that start with 1")
    (group,) = groups
    plain_down: Down = "ResnetDownsampleBlock2D" if options["downsample"] == "resblock" else "DownBlock2D"
    plain_up: Up = "ResnetUpsampleBlock2D" if options["upsample"] == "resblock" else "UpBlock2D"
    size = shape.size[0] if len(set(shape.size)) == 1 else (shape.size[0], shape.size[-1])
    return UNet2D(
        sample_size=size,
        in_channels=shape.in_channels,
        out_channels=shape.out_channels,
        freq_shift=0 if options["embedding"] == "openai" else 1,
        flip_sin_to_cos=options["embedding"] == "openai",
        down_block_types=tuple("AttnDownBlock2D" if here else plain_down for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else plain_up for here in reversed(attends)),
        block_out_channels=tuple(widths),
        layers_per_block=options["blocks"],
        downsample_padding=0 if options["downsample"] == "conv-asymmetric" else 1,
        downsample_type="resnet" if options["downsample"] == "resblock" else "conv",
        upsample_type="resnet" if options["upsample"] == "resblock" else "conv",
        dropout=options["dropout"],
        attention_head_dim=_head_width(options, widths, attends),
        norm_num_groups=group,
        attn_norm_num_groups=group,
        norm_eps=options["norm_eps"],
        resnet_time_scale_shift="scale_shift" if options["time"] == "scale-shift" else "default",
        add_attention=options["middle_attention"],
        num_class_embeds=None if shape.classes is None else shape.classes + 1,
    )


def _head_width(options: Mapping[str, Any], widths: Sequence[int], attends: Sequence[bool]) -> int | None:
    """attention_head_dim of diffusers: the width of a head; None for a single head."""
    if options["head_channels"] is not None:
        return int(options["head_channels"])
    if options["heads"] == 1:
        return None
    attending = {width for width, here in zip(widths, attends) if here}
    if options["middle_attention"]:
        attending.add(widths[-1])
    if len(attending) > 1:
        raise inexpressible(
            "diffusers' UNet2DModel has one width of heads for all levels", fix="train with network.head_channels"
        )
    return attending.pop() // int(options["heads"])
