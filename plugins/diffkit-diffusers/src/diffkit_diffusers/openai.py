"""Checkpoints of OpenAI's improved-diffusion and guided-diffusion (.pt) as run directories with network `unet`.

Source: Nichol & Dhariwal 2021 (arXiv:2102.09672); Dhariwal & Nichol 2021 (arXiv:2105.05233); the authors' code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffkit import Run, load_recipe, run_from_weights

from .errors import inexpressible, misnamed, not_a_model
from .pickled import read_pickled
from .recipe import imported_sections, name_of, recipe_text
from .weights import Layout, parts

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
LABEL_TABLE = ("embedding.table.weight", "label_emb.weight")
GROUPS = 32


@dataclass(frozen=True)
class Heads:
    """Options of attention that the weights do not determine: `count` heads, or heads of `width` channels; the order.

    `new_order` is guided-diffusion's use_new_attention_order: q of all heads, then k, then v; else (q, k, v) per head.
    """

    count: int = 1
    width: int | None = None
    new_order: bool = False


@dataclass(frozen=True)
class Training:
    """Options of the training that the weights do not determine: flags of the authors' scripts."""

    steps: int = 1000
    schedule: Literal["linear", "cosine"] = "linear"
    predicts: Literal["eps", "x0"] = "eps"
    rescaled_time: bool = True


HEADS, TRAINING = Heads(), Training()


def import_checkpoint(
    checkpoint: Path | str,
    out: Path | str,
    *,
    size: int,
    heads: Heads = HEADS,
    training: Training = TRAINING,
    data: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> Run:
    """Import a U-Net of improved- or guided-diffusion as the new run directory `out`.

    The weights determine the architecture, apart from `heads`. With labels, a null class is added, whose vector is 0
    since it was not trained.

    Args:
        checkpoint: the .pt file.
        out: the run directory to create.
        size: height and width of the images.
        heads: options of attention; default: one head, old order.
        training: options of the training; default: those of the authors' scripts.
        data: the `data` section of the recipe; default: `shape-only`.
        overrides: changes to the recipe, each "path=value".

    Returns:
        The run.

    Raises:
        UsageError: DK080, the file holds another model; DK081, `unet` cannot express it; DK082, it cannot be read.
        RecipeError: an override is invalid.
        CheckpointError: DK603, the weights do not fit the architecture.
    """
    pickled = read_pickled(checkpoint)
    found = read_architecture(pickled, size, heads)
    weights = openai_weights(pickled, found.layout, heads)
    network: dict[str, Any] = {"name": "unet", **found.options}
    if training.rescaled_time and training.steps != 1000:
        network = {"name": "scaled-time", "factor": 1000 / training.steps, "inner": network}
        weights = {f"inner.{name}": tensor for name, tensor in weights.items()}
    inside = found.channels[0]
    shape = {"channels": inside, "size": [size, size], **({"classes": found.labels} if found.labels else {})}
    text = recipe_text(
        f"Weights of improved- or guided-diffusion, converted from {Path(checkpoint).name}",
        imported_sections(
            name_of(Path(out)),
            data or {"name": "shape-only", **shape},
            _sections(training, found.channels),
            network,
        ),
    )
    return run_from_weights(load_recipe(text, overrides), out, weights, f"OpenAI {Path(checkpoint).name}")


def import_by_flags(
    checkpoint: Path,
    out: Path,
    *,
    size: tuple[int, int] | None = None,
    heads: int = 4,
    head_channels: int | None = None,
    new_attention_order: bool = False,
    steps: int = 1000,
    schedule: Literal["linear", "cosine"] = "linear",
    prediction: str = "epsilon",
    rescale_timesteps: bool = True,
    data: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> Run:
    """Import a checkpoint by the flags of the authors' scripts, see `import_checkpoint`.

    Args:
        checkpoint: the .pt file.
        out: the run directory to create.
        size: height and width of the images, which must be equal.
        heads: num_heads.
        head_channels: num_head_channels, in place of `heads`.
        new_attention_order: use_new_attention_order.
        steps: diffusion_steps.
        schedule: noise_schedule.
        prediction: epsilon, or sample for predict_xstart.
        rescale_timesteps: whether timesteps are scaled to 1000.
        data: the `data` section of the recipe.
        overrides: changes to the recipe.

    Returns:
        The run.

    Raises:
        UsageError: DK080, the size is missing or not that of a square; further errors of `import_checkpoint`.
    """
    if size is None or size[0] != size[1]:
        raise not_a_model("a checkpoint of OpenAI does not show the size of its square images", fix="give --size 64")
    if prediction not in ("epsilon", "sample"):
        raise not_a_model(f"OpenAI's models do not predict {prediction}", fix="choose --prediction eps or x0")
    training = Training(steps, schedule, "eps" if prediction == "epsilon" else "x0", rescale_timesteps)
    attention = Heads(heads, head_channels, new_attention_order)
    return import_checkpoint(
        checkpoint, out, size=size[0], heads=attention, training=training, data=data, overrides=overrides
    )


def _sections(training: Training, channels: tuple[int, int]) -> dict[str, Any]:
    inside, outside = channels
    if outside not in (inside, 2 * inside):
        raise inexpressible(f"a model with {inside} input and {outside} output channels is not a denoiser of the data")
    schedule: dict[str, Any] = {"name": training.schedule, "steps": training.steps}
    if training.schedule == "linear":  # the authors' ends keep sum(beta) whatever the number of steps
        schedule |= {"beta_start": 0.1 / training.steps, "beta_end": 20.0 / training.steps}
    learned = outside == 2 * inside
    return {
        "schedule": schedule,
        "parameterization": {"name": "learned-range", "inner": training.predicts} if learned else training.predicts,
        "sample": {
            "sampler": {"name": "ancestral", "variance": "learned" if learned else "large"},
            "guidance": ["clip"],
        },
    }


@dataclass(frozen=True)
class Architecture:
    """The architecture that the weights determine: options of `unet`, layout, channels (in, out), number of labels."""

    options: Mapping[str, Any]
    layout: Layout
    channels: tuple[int, int]
    labels: int | None


def read_architecture(weights: Mapping[str, Tensor], size: int, heads: Heads) -> Architecture:
    """Derive the architecture from the weights.

    Args:
        weights: state dict of OpenAI's UNetModel.
        size: height and width of the images.
        heads: options of attention.

    Returns:
        The architecture.

    Raises:
        UsageError: DK080, the weights are not those of such a U-Net.
    """
    try:
        return _read_architecture(weights, size, heads)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise not_a_model(f"the checkpoint is not a U-Net of improved- or guided-diffusion ({error})") from error


def _read_architecture(weights: Mapping[str, Tensor], size: int, heads: Heads) -> Architecture:
    ups = [name for name in weights if re.fullmatch(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.weight", name)]
    entries = {int(name.split(".")[1]) for name in weights if name.startswith("output_blocks.")}
    levels, blocks = len(ups) + 1, len(entries) // (len(ups) + 1) - 1
    if size % 2 ** (levels - 1):
        raise not_a_model(
            f"a model of {levels} levels cannot halve size {size} {levels - 1} times", fix="give the right --size"
        )
    firsts = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
    channels = weights["time_embed.0.weight"].shape[1]
    widths = [weights[f"{first}.0.out_layers.3.weight"].shape[0] for first in firsts]
    if channels % GROUPS or any(width % channels for width in widths):
        raise not_a_model(f"network unet cannot express widths {widths} with a base of {channels}")
    attends = tuple(f"{first}.1.norm.weight" in weights for first in firsts)
    resblock = any(".in_layers." in name for name in ups)
    resample = "resblock" if resblock else "conv"
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
        "downsample": resample,
        "upsample": "resblock" if resblock else "nearest",
        "initialisation": "openai",
        "groups": GROUPS,
        "norm_eps": 1e-5,
    }
    rows = weights["label_emb.weight"].shape[0] if "label_emb.weight" in weights else None
    layout = Layout(blocks, attends, True, "resblock" if resblock else "conv", "resblock" if resblock else "conv")
    return Architecture(options, layout, (inside, outside), rows)


def openai_weights(theirs: Mapping[str, Tensor], layout: Layout, heads: Heads) -> dict[str, Tensor]:
    """Convert the state dict of OpenAI's UNetModel to that of `unet`.

    Args:
        theirs: OpenAI's state dict.
        layout: the parts of the network.
        heads: options of attention, which decide the order of q, k and v.

    Returns:
        The state dict of `unet`, float32; a label table has one more row of zeros, the null class.

    Raises:
        CheckpointError: DK603, a tensor is missing or unexpected.
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
            tensor = tensor.squeeze(-1) if attention and kind == "weight" else tensor  # a convolution of width 1
            ours[f"{here}.{kind}"] = _reordered(tensor, heads) if here.endswith(".qkv") else tensor
    if LABEL_TABLE[1] in left:
        table = left.pop(LABEL_TABLE[1]).float()
        ours[LABEL_TABLE[0]] = torch.cat([table, torch.zeros_like(table[:1])])
    if left:
        raise misnamed([], sorted(left))
    return ours


def _reordered(qkv: Tensor, heads: Heads) -> Tensor:
    """Reorder rows (heads, 3, width) to (3, heads, width), the order of `unet`."""
    if heads.new_order:
        return qkv
    count = len(qkv) // 3 // heads.width if heads.width else heads.count
    if len(qkv) % (3 * count):
        raise not_a_model(
            f"{count} heads do not divide {len(qkv) // 3} channels", fix="give the right --heads or --head-channels"
        )
    return qkv.reshape(count, 3, -1, *qkv.shape[1:]).transpose(0, 1).reshape(qkv.shape)


def _modules(layout: Layout) -> Iterator[tuple[str, str]]:
    yield from ENDS.items()
    for part in parts(layout):
        inner = {"residual": RESIDUAL, "attention": ATTENTION, "conv": None}[part.kind]
        if inner is None:
            yield part.ours, part.openai
        else:
            yield from ((f"{part.ours}.{here}", f"{part.openai}.{there}") for here, there in inner.items())
