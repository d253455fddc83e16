"""A folder of diffusers as a run directory, and a run as such a folder."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffkit import Network, Run, load_recipe, open_run
from diffkit.runs import run_from_weights

from .errors import inexpressible, not_a_model
from .folder import INDEX, SCHEDULER, open_folder, write_json, write_model
from .recipe import adopted, name_of, recipe_text, scheduler_config, sections
from .unet_config import UNet2D, config_of, options_of, read_config
from .weights import TABLE, diffusers_weights, unet_weights


def import_folder(
    folder: Path | str,
    out: Path | str,
    *,
    size: tuple[int, int] | None = None,
    classes: int | None = None,
    data: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> Run:
    """Read a UNet2DModel (or a pipeline with one) into the new run directory `out`, for `diffkit sample`.

    The recipe has network `unet`; schedule, prediction and sampler are those of the pipeline's scheduler, else DDPM's.
    `size` is needed where the model names none, `classes` where it takes labels: as many as its rows, and a null class
    is added (its vector is 0), or one less, and the last row is the null class. `data` replaces `shape-only`.
    Raises UsageError DK080, DK081, RecipeError, CheckpointError.
    """
    found = open_folder(folder)
    config = read_config(found.config())
    maps = size or config.size
    if maps is None:
        raise not_a_model(f"the model in {folder} does not say for which size it was made", fix="give --size")
    weights = unet_weights(found.weights(), config.layout)
    _fit_labels(weights, config, classes)
    shape = {"channels": config.in_channels, "size": list(maps), **({"classes": classes} if classes else {})}
    text = recipe_text(
        f"Weights of a UNet2DModel of diffusers, read from {Path(folder).name}",
        adopted(
            name_of(Path(out)),
            data or {"name": "shape-only", **shape},
            sections(found.scheduler_config(), (config.in_channels, config.out_channels)),
            {"name": "unet", **options_of(config, maps)},
        ),
    )
    return run_from_weights(load_recipe(text, overrides), out, weights, f"diffusers {Path(folder).name}")


def export_run(run: Path | str, out: Path | str, *, weights: str = "ema") -> Path:
    """Write the network of a run as a folder that diffusers loads; returns the folder of the model.

    On a discrete schedule, with eps, x0 or v, it becomes a pipeline: `unet`, `scheduler` and model_index.json, for
    DDPMPipeline. Raises UsageError DK081 where diffusers has no such model.
    """
    opened = open_run(run, device="cpu")
    assembly, recipe = opened.trained(weights), opened.recipe
    name, network = recipe.network.name, assembly.network
    if name == "unet":
        config = config_of(network, assembly.shape, unet_options(network, recipe.network.options))
        kind, told = "UNet2DModel", config.model_dump(mode="json")
        theirs = diffusers_weights(network.state_dict(), config.layout)
    elif name == "diffusers-unet":
        config = read_config(open_folder(recipe.network.options["folder"]).config())
        kind, told = "UNet2DModel", config.model_dump(mode="json")
        theirs = diffusers_weights(network.get_submodule("unet").state_dict(), config.layout)
    elif name == "diffusers":
        model = network.get_submodule("model")
        kind, told = type(model).__name__, _config_of_model(model)
        theirs = dict(model.state_dict())
    else:
        raise inexpressible(f"diffusers has no model for network {name}", fix="export runs of unet or diffusers")
    prediction = recipe.parameterization.name
    schedule = scheduler_config(assembly.schedule, recipe.schedule.name, prediction)
    root = Path(out)
    if schedule is None or kind != "UNet2DModel":
        write_model(root, kind, told, theirs)
        return root
    write_model(root / "unet", kind, told, theirs)
    write_json(root / "scheduler" / SCHEDULER, "DDPMScheduler", schedule)
    parts = {"unet": ["diffusers", kind], "scheduler": ["diffusers", "DDPMScheduler"]}
    write_json(root / INDEX, "DDPMPipeline", parts)
    return root / "unet"


def unet_options(network: Network, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a `unet`, defaults included."""
    parameters = inspect.signature(type(network).__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    return defaults | dict(given)


def _config_of_model(model: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(model.config).items() if not name.startswith("_")}


def _fit_labels(weights: dict[str, Tensor], config: UNet2D, classes: int | None) -> None:
    """Give the table of labels its row for the null class, where the model has none."""
    rows = config.num_class_embeds
    if rows is None:
        if classes is not None:
            raise not_a_model("this model takes no labels", fix="leave --classes out")
        return
    if classes not in (rows, rows - 1):
        raise not_a_model(
            f"this model has {rows} labels; whether the last one is the null class, it does not say",
            fix=f"--classes {rows - 1} if it is, --classes {rows} if all are classes",
        )
    if classes == rows:
        table = weights[TABLE[0]]
        weights[TABLE[0]] = torch.cat([table, torch.zeros_like(table[:1])])
