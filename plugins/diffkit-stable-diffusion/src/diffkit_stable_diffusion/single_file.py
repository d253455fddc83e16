"""Stable Diffusion 1 and 2 in one safetensors file, with the names of CompVis' latent-diffusion.

The shapes of the weights give the architecture. What they do not show is the convention of these models (heads of
attention, groups of normalization, scale of the latents), or an option: prediction of Stable Diffusion 2, tokenizer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffkit_diffusers.errors import inexpressible, misnamed, not_a_model
from diffkit_diffusers.weights import Layout
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffkit import CheckpointError

from .ldm_names import OPENCLIP_BLOCK, OPENCLIP_ENDS, unet_modules, vae_modules
from .pipeline import Model
from .text import ClipText

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
OPENCLIP_LAYERS, OPENCLIP_WIDTH = 24, 1024
"""Layers and width of the text model of Stable Diffusion 2, whose last layer is not used."""
OTHERS = {
    "conditioner.embedders.": "Stable Diffusion XL",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "model.diffusion_model.double_blocks.": "Flux",
}
"""Beginnings of names that only models have which are not supported."""
UNUSED = re.compile(
    r"[^.]+$|model_ema\.|.*\.position_ids$|cond_stage_model\.(\w+\.)?(logit_scale|text_projection|attn_mask)(\.weight)?$"
)
"""Tensors beside the weights: tables of the levels, averages of the training, and parts of CLIP for pictures."""
LEVELS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}
HEADS, HEAD_CHANNELS, GROUPS, SCALE = 8, 64, 32, 0.18215
"""Heads of Stable Diffusion 1, channels of a head in Stable Diffusion 2 and in the text encoders."""


def read_file(
    path: Path,
    *,
    prediction: str | None = None,
    tokenizer: Path | None = None,
    sha256: str | None = None,
    heads: int | None = None,
    head_channels: int | None = None,
) -> Model:
    """Read a single file.

    Args:
        path: the file.
        prediction: what the network predicts; required for Stable Diffusion 2, else epsilon.
        tokenizer: folder of the tokenizer; default: `tokenizer` beside the file, or the folder of the file.
        sha256: the expected hash of the file.
        heads: number of heads of the U-Net, in place of 8.
        head_channels: channels of a head of the U-Net, in place of `heads`.

    Returns:
        The model.

    Raises:
        UsageError: DK080, the file is damaged, is not a safetensors file, or an option is missing; DK081, it holds
            another model.
        CheckpointError: DK603, its hash is another one, or a weight is missing or unknown.
    """
    weights = _read(path, sha256)
    for begin, name in OTHERS.items():
        if any(one.startswith(begin) for one in weights):
            raise inexpressible(f"{path} holds {name}, which is not supported", fix="import Stable Diffusion 1 or 2")
    left = {name: tensor for name, tensor in weights.items() if not UNUSED.match(name)}
    second = any(name.startswith(OPENCLIP) for name in left)
    if second and prediction is None:
        raise not_a_model(
            f"{path} holds Stable Diffusion 2, and does not show what the network predicts",
            fix="pass --prediction v (768-v, 2.1) or --prediction eps (512-base)",
        )
    if not second and not any(name.startswith(CLIP) for name in left):
        raise not_a_model(f"{path} holds no text encoder of Stable Diffusion", fix="name the whole model")
    try:
        unet, layout, channels = _unet_config(_part(left, UNET), second, heads, head_channels)
        vae, levels, blocks = _vae_config(_part(left, VAE))
        text = _text_config(_part(left, OPENCLIP if second else CLIP), second)
    except (KeyError, IndexError, ZeroDivisionError, ValueError) as error:
        raise not_a_model(f"{path} is not a model of Stable Diffusion ({error})") from error
    found = _tokenizer_folder(path, tokenizer)
    entries, read = ClipText.read_tokenizer(found, text)
    names = _openclip_names if second else _clip_names
    ours = {
        UNET: _renamed(_part(left, UNET), unet_modules(layout)),
        VAE: _convolutions_to_layers(_renamed(_part(left, VAE), vae_modules(levels, blocks))),
        OPENCLIP if second else CLIP: names(_part(left, OPENCLIP if second else CLIP)),
    }
    if unknown := [name for name in left if not name.startswith(tuple(ours))]:
        raise misnamed([], sorted(unknown))
    side = 96 if second and prediction == "v_prediction" else 64
    return Model(
        unet=unet,
        unet_weights=ours[UNET],
        channels=channels,
        vae=vae,
        vae_weights=ours[VAE],
        text={**text, **entries},
        text_weights={**ours[OPENCLIP if second else CLIP], "tokenizer": read},
        scheduler={**_levels(weights, path), "prediction_type": prediction or "epsilon"},
        size=(side, side),
        source=f"file {path.name}",
    )


def _read(path: Path, sha256: str | None) -> dict[str, Tensor]:
    if sha256 is not None:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256.lower():
            message = f"{path} has the hash {found[:12]}..., not {sha256[:12]}..."
            raise CheckpointError(message, code="DK603", fix="copy the file again from a source that you trust")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        fix = "take the .safetensors file of the model; a pickle (.ckpt) under this name is not opened either"
        raise not_a_model(f"{path} is not a safetensors file: {error}", fix=fix) from error


def _levels(weights: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Return the configuration of the levels, which the table in a file must agree with if there is one."""
    table = weights.get("alphas_cumprod")
    if table is None:
        return LEVELS
    ends = (LEVELS["beta_start"] ** 0.5, LEVELS["beta_end"] ** 0.5)
    usual = (1.0 - torch.linspace(*ends, 1000, dtype=torch.float64) ** 2).cumprod(0)
    same_shape = table.shape == usual.shape
    zero = same_shape and float(table[-1]) == 0.0
    if zero:  # Lin et al. 2023 (arXiv:2305.08891), Algorithm 1
        alpha = usual.sqrt()
        usual = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    rounding = torch.finfo(table.dtype).eps if table.is_floating_point() else 0.0
    if not same_shape or not torch.allclose(table.double(), usual, rtol=0, atol=max(1e-4, rounding)):
        fix = "import a folder of diffusers, whose scheduler states the levels"
        raise inexpressible(f"alphas_cumprod in {path} are not the levels of Stable Diffusion", fix=fix)
    # leading times start below the level without signal, which such a model was trained to start from
    return {**LEVELS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero else LEVELS


def _part(weights: Mapping[str, Tensor], begin: str) -> dict[str, Tensor]:
    return {name.removeprefix(begin): tensor for name, tensor in weights.items() if name.startswith(begin)}


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """Return the number of different numbers that the group of a pattern matches at the start of names."""
    return len({found[1] for name in weights if (found := re.match(pattern, name))})


def _unet_config(
    weights: Mapping[str, Tensor], second: bool, heads: int | None, head_channels: int | None
) -> tuple[dict[str, Any], Layout, tuple[int, int]]:
    levels = _count(weights, r"input_blocks\.(\d+)\.0\.op\.weight") + 1
    blocks = _count(weights, r"output_blocks\.(\d+)\.") // levels - 1
    firsts = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
    widths = [weights[f"{first}.0.out_layers.3.weight"].shape[0] for first in firsts]
    attends = tuple(f"{first}.1.norm.weight" in weights for first in firsts)
    linear = weights["middle_block.1.proj_in.weight"].ndim == 2
    of_head = head_channels or (HEAD_CHANNELS if second and heads is None else None)
    config = {
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)],
        "attention_head_dim": (heads or HEADS) if of_head is None else [width // of_head for width in widths],
        "transformer_layers_per_block": _count(weights, r"middle_block\.1\.transformer_blocks\.(\d+)\."),
        "use_linear_projection": linear,
        "norm_num_groups": GROUPS,
    }
    channels = weights["input_blocks.0.0.weight"].shape[1], weights["out.2.weight"].shape[0]
    return config, Layout(blocks, attends), channels


def _vae_config(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], int, int]:
    levels = _count(weights, r"encoder\.down\.(\d+)\.")
    blocks = _count(weights, r"encoder\.down\.0\.block\.(\d+)\.")
    config = {
        "_class_name": "AutoencoderKL",
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "latent_channels": weights["post_quant_conv.weight"].shape[0],
        "block_out_channels": [weights[f"encoder.down.{n}.block.0.conv2.weight"].shape[0] for n in range(levels)],
        "layers_per_block": blocks,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": GROUPS,
        "scaling_factor": SCALE,
    }
    return config, levels, blocks


def _text_config(weights: Mapping[str, Tensor], second: bool) -> dict[str, Any]:
    """Return the arguments of CLIPTextConfig; Stable Diffusion 2 leaves out the last layer of OpenCLIP."""
    if second:
        table, places = weights["token_embedding.weight"], weights["positional_embedding"]
        layers = _openclip_layers(weights)
        inner = weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    else:
        plain = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
        table, places = (plain[f"embeddings.{name}_embedding.weight"] for name in ("token", "position"))
        layers, inner = _count(plain, r"encoder\.layers\.(\d+)\."), plain["encoder.layers.0.mlp.fc1.weight"].shape[0]
    width = table.shape[1]
    return {
        "vocab_size": table.shape[0],
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_CHANNELS),
        "max_position_embeddings": places.shape[0],
        "hidden_act": "gelu" if second else "quick_gelu",
    }


def _renamed(weights: Mapping[str, Tensor], modules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Return the weights with the names of modules changed. Raises CheckpointError DK603 for unknown names."""
    names, made = dict(modules), {}
    for name, tensor in weights.items():
        parts = name.split(".")
        begins = (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
        begin = next((one for one in begins if one in names), None)
        if begin is None:
            raise misnamed([], [name])
        made[names[begin] + name.removeprefix(begin)] = tensor
    return made


def _convolutions_to_layers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an autoencoder with the convolutions of width 1 in its attention as linear layers."""
    return {
        name: tensor.flatten(1) if ".attentions.0.to_" in name and name.endswith("weight") else tensor
        for name, tensor in weights.items()
    }


def _clip_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return ClipText.present_names(weights)


def _openclip_layers(weights: Mapping[str, Tensor]) -> int:
    """Return the number of layers that are used: all but the last, which a file of diffusers with 23 leaves out."""
    found = _count(weights, r"transformer\.resblocks\.(\d+)\.")
    complete = found == OPENCLIP_LAYERS - 1 and weights["token_embedding.weight"].shape[1] == OPENCLIP_WIDTH
    return found if complete else found - 1


def _openclip_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the text model of OpenCLIP by the names of the conditioner, without its last layer."""
    layers = _openclip_layers(weights)
    made: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if block is None:
            if name not in OPENCLIP_ENDS:
                raise misnamed([], [OPENCLIP + name])
            made[OPENCLIP_ENDS[name]] = tensor
            continue
        if int(block[1]) >= layers:
            continue
        there, inner = f"encoder.layers.{block[1]}", block[2]
        module, _, kind = inner.rpartition(".")
        if inner in ("attn.in_proj_weight", "attn.in_proj_bias"):
            for letter, piece in zip("qkv", torch.chunk(tensor, 3), strict=True):
                made[f"{there}.self_attn.{letter}_proj.{inner.removeprefix('attn.in_proj_')}"] = piece
        elif module in OPENCLIP_BLOCK:
            made[f"{there}.{OPENCLIP_BLOCK[module]}.{kind}"] = tensor
        else:
            raise misnamed([], [OPENCLIP + name])
    return {f"encoder.{name}": tensor for name, tensor in made.items()}


def _tokenizer_folder(path: Path, given: Path | None) -> Path:
    """Return the folder of the tokenizer. Raises UsageError DK080 if there is none."""
    if given is not None:
        return given / "tokenizer" if (given / "tokenizer").is_dir() else given
    places = (path.parent / "tokenizer", path.with_suffix("") / "tokenizer", path.parent)
    for folder in places:
        if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
            return folder
    raise not_a_model(
        f"{path} holds no tokenizer, and there is none beside it",
        fix="pass --tokenizer FOLDER, or put the folder `tokenizer` of any Stable Diffusion pipeline beside the file",
    )
