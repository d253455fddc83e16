"""Import a folder of diffusers as a run directory, and export a run as such a folder."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffkit import Network, Run, load_recipe, open_run, run_from_weights

from .errors import inexpressible, not_a_model
from .folder import INDEX, SCHEDULER, open_folder, write_json, write_model
from .recipe import imported_sections, name_of, recipe_text, scheduler_config, sections
from .unet_config import UNet2D, config_of, options_of, read_config
from .weights import LABEL_TABLE, diffusers_weights, unet_weights


def import_folder(
    folder: Path | str,
    out: Path | str,
    *,
    size: tuple[int, int] | None = None,
    classes: int | None = None,
    variant: str | None = None,
    ignore: Collection[str] = (),
    data: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> Run:
    """Import a UNet2DModel (or a pipeline with one) as the new run directory `out`, for `diffkit sample`.

    The recipe has network `unet`; schedule, prediction, sampler and grid are those of the pipeline's scheduler, else
    DDPM's. Each option of both configurations is carried over, or refused by name.

    Args:
        folder: the model or pipeline.
        out: the run directory to create.
        size: (H, W), required if the model has no `sample_size`.
        classes: number of classes, required if the model takes labels. If the label table has this many rows, a null
            class with a zero vector is added; if it has one row more, its last row is the null class.
        variant: the weights to read, such as "fp16"; default: those without a variant, or the only ones.
        ignore: names of options of the configurations that are not read.
        data: the `data` section of the recipe; default: `shape-only`.
        overrides: changes to the recipe, each "path=value".

    Returns:
        The run.

    Raises:
        UsageError: DK080, the folder is unusable or an argument is missing; DK081, `unet` cannot express the model.
        RecipeError: an override is invalid.
        CheckpointError: DK603, the weights do not fit the config.
    """
    found = open_folder(folder)
    theirs, scheduler = found.config(), found.scheduler_config()
    absent = [name for name in ignore if name not in theirs and name not in scheduler]
    if absent:
        raise not_a_model(f"{folder} has no option {absent[0][:64]} to ignore", fix="correct the name after --ignore")
    config = read_config(theirs, ignore)
    maps = size or config.size
    if maps is None:
        raise not_a_model(f"the model in {folder} has no sample_size", fix="give --size")
    weights = unet_weights(found.weights(variant), config.layout)
    _fit_labels(weights, config, classes)
    shape = {"channels": config.in_channels, "size": list(maps), **({"classes": classes} if classes else {})}
    without = f", without its options {', '.join(ignore)}" if ignore else ""
    text = recipe_text(
        f"Weights of a UNet2DModel of diffusers, read from {Path(folder).name}{without}",
        imported_sections(
            name_of(Path(out)),
            data or {"name": "shape-only", **shape},
            sections(scheduler, (config.in_channels, config.out_channels), ignore),
            {"name": "unet", **options_of(config, maps)},
        ),
    )
    return run_from_weights(load_recipe(text, overrides), out, weights, f"diffusers {Path(folder).name}")


def export_run(run: Path | str, out: Path | str, *, weights: str = "ema") -> Path:
    """Export the network of a run as a folder that diffusers loads.

    On a discrete schedule, with eps, x0 or v, the folder is a pipeline for DDPMPipeline: `unet`, `scheduler` and
    model_index.json.

    Args:
        run: the run directory.
        out: the folder to create.
        weights: "ema", "raw" or the name of an average; default "ema".

    Returns:
        The folder of the model.

    Raises:
        UsageError: DK080, `out` is not empty; DK081, diffusers cannot express the network.
    """
    assembly = open_run(run, device="cpu").trained(weights)
    recipe = assembly.recipe
    name, network = recipe.network.name, assembly.network
    if name == "unet":
        config = config_of(network, assembly.shape, unet_options(network, recipe.network.options))
        class_name, arguments = "UNet2DModel", config.model_dump(mode="json")
        theirs = diffusers_weights(network.state_dict(), config.layout)
    elif name == "diffusers-unet":
        config = read_config(open_folder(recipe.network.options["folder"]).config())
        class_name, arguments = "UNet2DModel", config.model_dump(mode="json")
        theirs = diffusers_weights(network.get_submodule("unet").state_dict(), config.layout)
    elif name == "diffusers":
        model = network.get_submodule("model")
        class_name, arguments = type(model).__name__, _config_of_model(model)
        theirs = dict(model.state_dict())
    else:
        raise inexpressible(
            f"network `{name}` cannot be exported to diffusers",
            fix="export a run with network unet, diffusers-unet or diffusers",
        )
    prediction = recipe.parameterization.name
    schedule = scheduler_config(assembly.schedule, recipe.schedule.name, prediction)
    root = Path(out)
    if schedule is None or class_name != "UNet2DModel":
        write_model(root, class_name, arguments, theirs)
        return root
    write_model(root / "unet", class_name, arguments, theirs)
    write_json(root / "scheduler" / SCHEDULER, "DDPMScheduler", schedule | _step_options(recipe.sample))
    parts = {"unet": ["diffusers", class_name], "scheduler": ["diffusers", "DDPMScheduler"]}
    write_json(root / INDEX, "DDPMPipeline", parts)
    return root / "unet"


def _step_options(sample: Any) -> dict[str, Any]:
    """Return the options of DDPMScheduler for the clipping and the variance in the section `sample` of a recipe."""
    clips = [one.options for one in sample.guidance if one.name == "clip"]
    high = max((float(one.get("high", 1.0)) for one in clips), default=1.0)
    large = sample.sampler.name == "ancestral" and sample.sampler.options.get("variance") == "large"
    variance = "fixed_large" if large else "fixed_small"
    return {"clip_sample": bool(clips), "clip_sample_range": high, "variance_type": variance}


def unet_options(network: Network, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a `unet`, defaults included."""
    parameters = inspect.signature(type(network).__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return defaults | dict(given)


def _config_of_model(model: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(model.config).items() if not name.startswith("_")}


def _fit_labels(weights: dict[str, Tensor], config: UNet2D, classes: int | None) -> None:
    """Add a row for the null class to the label table if the model has none."""
    rows = config.num_class_embeds
    if rows is None:
        if classes is not None:
            raise not_a_model("this model takes no labels", fix="leave --classes out")
        return
    if classes not in (rows, rows - 1):
        raise not_a_model(
            f"this model has {rows} labels; its config does not define whether the last one is the null class",
            fix=f"pass --classes {rows - 1} if the last label is the null class, else --classes {rows}",
        )
    if classes == rows:
        table = weights[LABEL_TABLE[0]]
        weights[LABEL_TABLE[0]] = torch.cat([table, torch.zeros_like(table[:1])])
