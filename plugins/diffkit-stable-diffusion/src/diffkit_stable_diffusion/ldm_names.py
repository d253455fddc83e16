"""Names of weights in single files (CompVis' latent-diffusion) by those of diffusers and transformers.

The U-Net is OpenAI's with transformers in place of attention, so its parts are those of `diffkit_diffusers.weights`.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffkit_diffusers.openai import RESIDUAL as OPENAI_RESIDUAL
from diffkit_diffusers.weights import RESIDUAL, Layout, parts

UNET_ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
VAE_RESIDUAL = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OPENCLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OPENCLIP_ENDS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def unet_modules(layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield (name in the file, name in UNet2DConditionModel) of modules; transformers keep the names inside."""
    yield from UNET_ENDS.items()
    for part in parts(layout):
        if part.kind == "residual":
            for ours, theirs in RESIDUAL.items():
                yield f"{part.openai}.{OPENAI_RESIDUAL[ours]}", f"{part.diffusers}.{theirs}"
        else:
            yield part.openai, part.diffusers


def vae_modules(levels: int, blocks: int) -> Iterator[tuple[str, str]]:
    """Yield (name in the file, name in AutoencoderKL) of modules; those that a model lacks are among them."""
    for half, side, count in (("encoder", "down", blocks), ("decoder", "up", blocks + 1)):
        for end, theirs in (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")):
            yield f"{half}.{end}", f"{half}.{theirs}"
        for level in range(levels):
            there = f"{half}.{side}_blocks.{level if side == 'down' else levels - 1 - level}"
            for block in range(count):
                for name, theirs in VAE_RESIDUAL.items():
                    yield f"{half}.{side}.{level}.block.{block}.{name}", f"{there}.resnets.{block}.{theirs}"
            yield f"{half}.{side}.{level}.{side}sample.conv", f"{there}.{side}samplers.0.conv"
        for block in range(2):
            for name, theirs in VAE_RESIDUAL.items():
                yield f"{half}.mid.block_{block + 1}.{name}", f"{half}.mid_block.resnets.{block}.{theirs}"
        for name, theirs in VAE_ATTENTION.items():
            yield f"{half}.mid.attn_1.{name}", f"{half}.mid_block.attentions.0.{theirs}"
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))
