"""The parts of a Stable Diffusion model, read from a folder of diffusers; nothing in the folder is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffkit_diffusers.errors import inexpressible, not_a_model
from diffkit_diffusers.folder import CONFIG, INDEX, SCHEDULER, Folder, read_json
from packaging.version import InvalidVersion, Version
from torch import Tensor

from .network import FROM_SHAPE, NEED_INPUTS
from .text import ClipText

_TEXT: Mapping[str, Any] = {"steps_offset": 1, "clip_sample": False}
PIPELINES: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionPipeline": _TEXT,
    "StableDiffusionImg2ImgPipeline": _TEXT,
    "StableDiffusionInpaintPipeline": {"steps_offset": 1, "skip_prk_steps": True},
    "StableDiffusionInpaintPipelineLegacy": _TEXT,
}
"""The pipelines, and the options of the scheduler that each one sets in diffusers, whatever its file states."""
PARTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
"""The class of each part with weights."""


@dataclass(frozen=True)
class Model:
    """A text-to-image model: configurations and state dicts of its parts, and the configuration of the scheduler.

    unet, vae, text             options and weights of network, codec and conditioner of a recipe
    scheduler                   configuration of a scheduler of diffusers
    size                        (H, W) of the latents
    source                      description of the origin
    """

    unet: Mapping[str, Any]
    unet_weights: Mapping[str, Tensor]
    channels: tuple[int, int]
    vae: Mapping[str, Any]
    vae_weights: Mapping[str, Tensor]
    text: Mapping[str, Any]
    text_weights: Mapping[str, Tensor]
    scheduler: Mapping[str, Any]
    size: tuple[int, int]
    source: str


def read_pipeline(folder: Path, variant: str | None = None) -> Model:
    """Read a pipeline of diffusers.

    The safety checker and the feature extractor are left out.

    Args:
        folder: the pipeline.
        variant: part of the names of the weights, such as "fp16"; default: those without, or the only ones.

    Returns:
        The model.

    Raises:
        UsageError: DK080, a part is missing, damaged or a pickle; DK081, the pipeline is of a class that is not
            supported.
    """
    index = read_json(folder / INDEX)
    name = str(index.get("_class_name"))[:64]
    if name not in PIPELINES:
        raise inexpressible(
            f"{folder} holds a {name}, which is not supported",
            fix="import a StableDiffusionPipeline or a StableDiffusionInpaintPipeline: Stable Diffusion 1 or 2",
        )
    for part, wanted in PARTS.items():
        entry = index.get(part)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found != wanted:
            raise inexpressible(f"{folder}: {part} is a {str(found)[:64]}, not a {wanted}")
    unet, vae = Folder(folder / "unet"), Folder(folder / "vae")
    config = unet.config()
    inside, outside = (whole(config, name, 4, unet.model / CONFIG) for name in FROM_SHAPE[:2])
    text, text_weights = ClipText.read(folder, variant)
    return Model(
        unet=unet_options(config),
        unet_weights=unet.weights(variant, pickles=False),
        channels=(inside, outside),
        vae=vae.config(),
        vae_weights=vae.weights(variant, pickles=False),
        text=text,
        text_weights=text_weights,
        scheduler={**read_json(folder / "scheduler" / SCHEDULER), **PIPELINES[name]},
        size=_size(config, unet.model / CONFIG),
        source=f"diffusers {folder.name}",
    )


def _size(config: Mapping[str, Any], source: Path) -> tuple[int, int]:
    """Return (H, W) of the latents. A single number below 64 is 64 in files of diffusers before 0.9, as diffusers reads
    them: they state that of an earlier training.
    """
    size = config.get("sample_size") or 64
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    height, width = (whole({"sample_size": side}, "sample_size", 64, source) for side in (height, width))
    if isinstance(size, int) and size < 64 and _before(str(config.get("_diffusers_version", "")), "0.9.0"):
        return 64, 64
    return height, width


def _before(version: str, other: str) -> bool:
    """Return whether a version is earlier than another; False for a text that is not a version."""
    try:
        return Version(Version(version).base_version) < Version(other)
    except InvalidVersion:
        return False


def whole(config: Mapping[str, Any], name: str, default: int, source: Path | str) -> int:
    """Return an option of a config that is a whole number above 0.

    Args:
        config: the configuration.
        name: name of the option.
        default: its value where the configuration does not state it.
        source: file of the configuration, for messages.

    Returns:
        The number.

    Raises:
        UsageError: DK080, the value is anything else.
    """
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        message = f"{source}: {name} is {str(value)[:64]!r}, not a whole number above 0"
        raise not_a_model(message, fix="copy config.json of the model again")
    return value


def unet_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option `config` of the network for a config.json of UNet2DConditionModel.

    Raises UsageError DK081 for a model with further inputs.
    """
    needed = [name for name in NEED_INPUTS if config.get(name) is not None]
    if needed:
        raise inexpressible(f"the UNet2DConditionModel has {needed[0]}, an input that no condition supplies")
    return {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and name not in FROM_SHAPE and name not in NEED_INPUTS
    }
