"""Import a Stable Diffusion model as a run directory: weights of all parts in one checkpoint, and a recipe."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from diffkit_diffusers.errors import not_a_model
from diffkit_diffusers.recipe import name_of, recipe_text
from torch import Tensor

from diffkit import Run, UsageError, load_recipe, run_from_weights

from .pipeline import Model, read_pipeline, whole
from .scheduler import sections
from .single_file import read_file

TEXT_BYTES = 2048
"""Bytes of a text that a run takes; 77 tokens are about 300."""
INPAINTING = "inpainting"
"""The condition of models with channels for a mask and masked latents."""


def import_model(
    source: Path | str,
    out: Path | str,
    *,
    prediction: str | None = None,
    size: tuple[int, int] | None = None,
    variant: str | None = None,
    tokenizer: Path | str | None = None,
    sha256: str | None = None,
    heads: int | None = None,
    head_channels: int | None = None,
    ignore: Collection[str] = (),
    overrides: Iterable[str] = (),
) -> Run:
    """Import Stable Diffusion, a folder of diffusers or a single file, as the new run directory `out`.

    The run holds the weights of U-Net, autoencoder and text encoder, and the tokenizer, so it needs no other file.
    Numbers of the weights are unchanged, in float32.

    Args:
        source: the folder, or the .safetensors file.
        out: the run directory to create.
        prediction: epsilon, sample or v_prediction, in place of that of the scheduler; required for a single file of
            Stable Diffusion 2.
        size: (H, W) of the images; default: that of the training.
        variant: the weights of a folder to read, such as "fp16"; default: those without, or the only ones.
        tokenizer: folder of the tokenizer of a single file; default: beside the file.
        sha256: expected hash of a single file.
        heads: number of heads of the U-Net in a single file; default 8, as in Stable Diffusion 1.
        head_channels: channels of a head of the U-Net in a single file; default 64 in Stable Diffusion 2.
        ignore: names of options of a folder's scheduler that are not read; the samples then differ from diffusers.
        overrides: changes to the recipe, each "path=value".

    Returns:
        The run.

    Raises:
        UsageError: DK080, a part is missing, damaged or a pickle, or an option is missing; DK081, the model is of a
            kind that is not supported, or its scheduler has an option that a recipe cannot express; DK017, an option
            has no effect on a folder or on a file.
        RecipeError: an override is invalid.
        CheckpointError: DK603, weights do not fit their config, or the hash of a file is another one.
    """
    path = Path(source)
    of_file = {"tokenizer": tokenizer, "sha256": sha256, "heads": heads, "head_channels": head_channels}
    without_effect = {"variant": variant, "ignore": ignore or None} if path.is_file() else of_file
    for option, value in without_effect.items():
        if value is not None:
            kind = "a single file" if path.is_file() else "a folder"
            message = f"--{option.replace('_', '-')} has no effect on {kind}"
            raise UsageError(message, code="DK017", fix="leave it out")
    if path.is_file():
        beside = None if tokenizer is None else Path(tokenizer)
        model = read_file(
            path, prediction=prediction, tokenizer=beside, sha256=sha256, heads=heads, head_channels=head_channels
        )
    else:
        model = read_pipeline(path, variant)
    made = recipe(model, name_of(Path(out)), prediction, size, ignore)
    text = recipe_text(f"Stable Diffusion, read from {path.name}", made)
    components: dict[str, Mapping[str, Tensor]] = {
        "codec": {f"model.{name}": one for name, one in model.vae_weights.items()},
        "conditions/text": model.text_weights,
    }
    weights = {f"model.{name}": tensor for name, tensor in model.unet_weights.items()}
    return run_from_weights(load_recipe(text, overrides), out, weights, model.source, components)


def recipe(
    model: Model, name: str, prediction: str | None, size: tuple[int, int] | None, ignore: Collection[str] = ()
) -> dict[str, Any]:
    """Return the sections of the recipe of a model.

    Args:
        model: the model.
        name: name of the recipe.
        prediction: see `import_model`.
        size: see `import_model`.
        ignore: see `import_model`.

    Returns:
        The sections.

    Raises:
        UsageError: DK080, the channels of U-Net and autoencoder do not fit each other, or are not numbers; DK081, see
            `sections`.
    """
    inside, outside = model.channels
    source = f"the config of the autoencoder in {model.source}"
    latent, colours = (whole(model.vae, *one, source) for one in (("latent_channels", 4), ("in_channels", 3)))
    widths = model.vae.get("block_out_channels", [64])
    if not isinstance(widths, list | tuple) or not widths:
        message = f"{source}: block_out_channels is {str(widths)[:64]!r}, not a list of widths"
        raise not_a_model(message, fix="copy config.json of the model again")
    factor = 2 ** (len(widths) - 1)
    if outside != latent or inside not in (latent, 2 * latent + 1):
        raise not_a_model(
            f"the U-Net has {inside} input and {outside} output channels, but the autoencoder has {latent}",
            fix="import a text-to-image model, or an inpainting model with channels for mask and masked latents",
        )
    height, width = size or (factor * model.size[0], factor * model.size[1])
    conditions: dict[str, Any] = {"text": {"dtype": "text", "shape": [TEXT_BYTES]}}
    conditioners: dict[str, Any] = {"text": {"name": "clip-text", "config": dict(model.text)}}
    if inside != latent:
        conditions[INPAINTING] = {"dtype": "uint8", "shape": [colours + 1, height, width]}
        conditioners[INPAINTING] = "inpainting"
    made = sections(model.scheduler, prediction, ignore)
    return {
        "name": name,
        "data": {"name": "shape-only", "channels": colours, "size": [height, width], "conditions": conditions},
        "conditions": conditioners,
        "codec": {"name": "diffusers-vae", "config": dict(model.vae)},
        "schedule": made["schedule"],
        "parameterization": made["parameterization"],
        "network": {"name": "stable-diffusion", "config": dict(model.unet)},
        "train": {"steps": 0, "ema": []},
        "sample": made["sample"],
    }
