"""Single files with the names of latent-diffusion: the same model as the folder of diffusers."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffkit_stable_diffusion.importing import import_model
from diffkit_stable_diffusion.scheduler import sections
from diffkit_stable_diffusion.single_file import LEVELS, _levels, _openclip_layers, _openclip_names
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffkit import CheckpointError, UsageError

USUAL = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)


def ldm_unet(name: str) -> str:
    """The name in a file of a weight of the U-Net with two levels of one block, the first with attention."""
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    places = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.attentions.0": "input_blocks.1.1",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.resnets.0": "input_blocks.3.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.resnets.0": "output_blocks.0.0",
        "up_blocks.0.resnets.1": "output_blocks.1.0",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
        "up_blocks.1.resnets.0": "output_blocks.2.0",
        "up_blocks.1.attentions.0": "output_blocks.2.1",
        "up_blocks.1.resnets.1": "output_blocks.3.0",
        "up_blocks.1.attentions.1": "output_blocks.3.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    (begin,) = (one for one in places if name.startswith(f"{one}."))
    rest = name.removeprefix(f"{begin}.")
    part, _, kind = rest.rpartition(".")
    return f"model.diffusion_model.{places[begin]}.{f'{inner[part]}.{kind}' if part in inner else rest}"


def ldm_vae(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """The name and value in a file of a weight of the autoencoder with two levels."""
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for theirs, ours in attention.items():
        if f"attentions.0.{theirs}." in name:
            value = tensor[..., None, None] if tensor.ndim == 2 else tensor
            return f"first_stage_model.{name.split('.')[0]}.mid.attn_1.{ours}.{name.rpartition('.')[2]}", value
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{1 - int(m[1])}.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", name)
    return f"first_stage_model.{name}", tensor


def openclip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder with the names of OpenCLIP, and a last layer that is not used."""
    made = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
        "text_projection": torch.zeros(64, 64),
        "logit_scale": torch.zeros(()),
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    for layer in range(2):
        begin, there = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            pieces = [weights[f"{begin}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            made[f"{there}.attn.in_proj_{kind}"] = torch.cat(pieces)
            made |= {f"{there}.{ours}.{kind}": weights[f"{begin}.{name}.{kind}"] for name, ours in names.items()}
    last = {name.replace("resblocks.1", "resblocks.2"): one + 1 for name, one in made.items() if "resblocks.1" in name}
    return {f"cond_stage_model.model.{name}": tensor for name, tensor in (made | last).items()}


def write_file(folder: Path, path: Path, second: bool = False) -> None:
    """Write a pipeline as a single file."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    plain = {name.removeprefix("text_model."): one for name, one in text.items()}
    clip = {f"cond_stage_model.transformer.text_model.{name}": one for name, one in plain.items()}
    whole = {
        **{ldm_unet(name): one for name, one in unet.items()},
        **dict(ldm_vae(name, one) for name, one in vae.items()),
        **(openclip(plain) if second else clip),
        "alphas_cumprod": USUAL.float(),
        "model_ema.decay": torch.zeros(()),
    }
    save_file({name: one.contiguous().clone() for name, one in whole.items()}, path)


def same(a: Any, b: Any) -> None:
    """Require that two runs draw the same sample."""
    pair = [run.sample(1, conditions={"text": "a red cat"}, steps=2) for run in (a, b)]
    torch.testing.assert_close(pair[0], pair[1], rtol=0, atol=1e-5)
    for part in ("network", "codec"):
        ours, theirs = (getattr(run.trained(), part).state_dict() for run in (a, b))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_table_of_levels_is_compared_in_its_own_precision() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    zero = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        assert _levels({"alphas_cumprod": USUAL.to(dtype)}, Path("file")) == LEVELS
        found = _levels({"alphas_cumprod": zero.to(dtype)}, Path("file"))
        assert found["rescale_betas_zero_snr"]
        assert sections(found, "v_prediction")["sample"]["grid"] == {"name": "trailing", "end": "clean"}
    straight = torch.linspace(1, 0, 1000)
    for wrong in (straight, straight.bfloat16(), USUAL[:10], torch.ones(()), torch.ones(1000, dtype=torch.int64)):
        with pytest.raises(UsageError, match="not the levels of Stable Diffusion"):
            _levels({"alphas_cumprod": wrong}, Path("file"))


@pytest.mark.slow
def test_first_version(make: Any, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "folder" / "model.safetensors"
    make(num_attention_heads=1).save_pretrained(folder)
    write_file(folder, file)
    a = import_model(folder, tmp_path / "a")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    same(a, import_model(file, tmp_path / "b", size=(16, 16), sha256=digest))
    with pytest.raises(CheckpointError, match="has the hash"):
        import_model(file, tmp_path / "never", sha256="0" * 64)
    away = file.rename(tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="holds no tokenizer"):
        import_model(away, tmp_path / "never")
    same(a, import_model(away, tmp_path / "c", size=(16, 16), tokenizer=folder))

    whole = load_file(away)
    whole["model.diffusion_model.strange.weight"] = torch.zeros(1)
    save_file(whole, away)
    with pytest.raises(CheckpointError) as caught:
        import_model(away, tmp_path / "never", tokenizer=folder)
    assert "strange" in str(caught.value.notes)
    whole.pop("model.diffusion_model.strange.weight")
    save_file({**whole, "alphas_cumprod": torch.ones(1000)}, away)
    with pytest.raises(UsageError, match="not the levels of Stable Diffusion"):
        import_model(away, tmp_path / "never", tokenizer=folder)
    save_file({"conditioner.embedders.0.weight": torch.zeros(1)}, away)
    with pytest.raises(UsageError, match="holds Stable Diffusion XL, which is not supported"):
        import_model(away, tmp_path / "never")
    away.write_bytes(b"\x80\x04not a safetensors file")
    with pytest.raises(UsageError, match="not a safetensors file"):
        import_model(away, tmp_path / "never")


@pytest.mark.slow
def test_second_version(make: Any, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "folder" / "model.safetensors"
    made = make(linear=True, unet={"attention_head_dim": [2, 4]}, num_attention_heads=1, hidden_act="gelu")
    made.save_pretrained(folder)
    write_file(folder, file, second=True)
    with pytest.raises(UsageError, match=r"does not show what the network predicts.*--prediction v"):
        import_model(file, tmp_path / "never")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    a = import_model(folder, tmp_path / "a")
    b = import_model(file, tmp_path / "b", prediction="v_prediction", size=(16, 16), head_channels=16)
    assert b.recipe.parameterization.name == "v"
    same(a, b)


@pytest.mark.parametrize(("width", "layers", "used"), [(1024, 24, 23), (1024, 23, 23), (8, 3, 2), (8, 23, 22)])
def test_a_file_may_lack_the_layer_of_openclip_that_is_not_used(width: int, layers: int, used: int) -> None:
    """Files of diffusers have the 23 layers of Stable Diffusion 2 that are used."""
    blocks = {f"transformer.resblocks.{one}.ln_1.weight": torch.zeros(1) for one in range(layers)}
    weights = {"token_embedding.weight": torch.zeros(2, width), **blocks}
    assert _openclip_layers(weights) == used
    assert len([name for name in _openclip_names(weights) if "layers" in name]) == used
