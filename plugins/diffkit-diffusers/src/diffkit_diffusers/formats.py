"""The formats of `diffkit import`: how each is recognised, the function that reads it, and the options it takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffkit import UsageError
from diffkit.errors import PluginError

from .errors import not_a_model

INDEX, TEXT_ENCODER = "model_index.json", "text_encoder"
FLAGS = ("new_attention_order", "steps", "schedule", "rescale_timesteps")
"""Flags of the scripts of OpenAI."""
PICKLES = (".bin", ".ckpt", ".pkl", ".pth")


@dataclass(frozen=True)
class Format:
    """A format of models.

    title        what a source of this format is
    recognises   whether a path is such a source, by names of files
    target       "module:function", called with source, out and the options that are given
    package      the package to install for it
    options      options that the function takes, beside `overrides`
    """

    title: str
    recognises: Callable[[Path], bool]
    target: str
    package: str
    options: frozenset[str]


FORMATS: Mapping[str, Format] = {
    "stable-diffusion": Format(
        "a folder of diffusers with a text encoder, or a .safetensors file",
        lambda path: path.suffix == ".safetensors" or (path / TEXT_ENCODER).is_dir(),
        "diffkit_stable_diffusion.importing:import_model",
        "diffkit-stable-diffusion",
        frozenset(("prediction", "size", "variant", "tokenizer", "sha256", "heads", "head_channels", "ignore")),
    ),
    "diffusers": Format(
        "a folder of diffusers with a UNet2DModel",
        lambda path: path.is_dir(),
        "diffkit_diffusers.importing:import_folder",
        "diffkit-diffusers",
        frozenset(("size", "classes", "variant", "ignore", "data")),
    ),
    "openai": Format(
        "a checkpoint (.pt) of improved- or guided-diffusion",
        lambda path: path.suffix == ".pt",
        "diffkit_diffusers.openai:import_by_flags",
        "diffkit-diffusers",
        frozenset(("size", "heads", "head_channels", "prediction", "data", *FLAGS)),
    ),
}


def import_source(source: Path, out: Path, options: Mapping[str, Any], name: str | None = None) -> None:
    """Import a model in any of the formats as a run directory.

    Args:
        source: a folder or a file.
        out: the run directory to create.
        options: the options that are given, by name.
        name: the format; None recognises it.

    Raises:
        UsageError: DK080, there is no such source, it is a pickle, or of no known format; DK017, the format does not
            take an option.
        PluginError: DK290, the package of the format is not installed.
        RecipeError, CheckpointError: see the functions of the formats.
    """
    if not source.exists():
        raise not_a_model(f"{source} does not exist", fix="name a folder or a file of a model")
    if source.suffix in PICKLES:
        raise not_a_model(
            f"{source} is a pickle, which is not opened",
            fix="take the .safetensors file of the model, or convert it where you trust it",
        )
    found = name or next((one for one, form in FORMATS.items() if form.recognises(source)), None)
    if found is None:
        notes = [f"{one}: {form.title}" for one, form in FORMATS.items()]
        raise not_a_model(f"{source} is of no known format", fix="name a model in one of these formats", notes=notes)
    form = FORMATS[found]
    for option in sorted(options.keys() - form.options - {"overrides"}):
        raise UsageError(
            f"--{option.replace('_', '-')} has no effect on the format {found}",
            code="DK017",
            choices=sorted(f"--{one.replace('_', '-')}" for one in form.options),
            fix="leave it out",
        )
    module, _, function = form.target.partition(":")
    try:
        importer = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        message = f"the format {found} requires the package {form.package}: {error}"
        raise PluginError(message, code="DK290", fix=f"pip install {form.package}") from error
    importer(source, out, **options)
