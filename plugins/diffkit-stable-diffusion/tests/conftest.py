"""A tiny Stable Diffusion with random weights, written by diffusers and transformers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

MERGES = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>")]
LENGTH, WIDTH = 16, 32
Make = Callable[..., Any]


def vocabulary() -> dict[str, int]:
    """Tokens of CLIP's order: bytes, bytes at the end of a word, merged pairs, start and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"{one}</w>" for one in alphabet), *("".join(pair) for pair in MERGES)]
    return {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def tiny_pipeline(
    channels: int = 4, scheduler: Any = None, linear: bool = False, unet: dict[str, Any] | None = None, **text: Any
) -> Any:
    """Return a pipeline for 16 x 16 images, latents of 8 x 8 and 16 tokens; the same weights at every call.

    Args:
        channels: input channels of the U-Net.
        scheduler: the scheduler; default DDIM as Stable Diffusion 1 has it.
        linear: projections of the U-Net as Stable Diffusion 2 has them.
        unet: further arguments of the U-Net.
        text: further arguments of the text encoder.

    Returns:
        The pipeline, in evaluation mode.
    """
    torch.manual_seed(0)
    numbers = vocabulary()
    end = numbers["<|endoftext|>"]
    config = transformers.CLIPTextConfig(
        vocab_size=len(numbers),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        **{"num_attention_heads": 4, **text},
        max_position_embeddings=LENGTH,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    with tempfile.TemporaryDirectory() as folder:  # the constructors of transformers 4 and 5 differ
        Path(folder, "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, MERGES)]), encoding="utf-8")
        tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder, model_max_length=LENGTH)
    model = diffusers.UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": channels,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": WIDTH,
            "use_linear_projection": linear,
            "attention_head_dim": 8,
            **(unet or {}),
        }
    )
    vae = diffusers.AutoencoderKL(
        sample_size=16,
        latent_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.18215,
    )
    kind = diffusers.StableDiffusionPipeline if channels == 4 else diffusers.StableDiffusionInpaintPipeline
    made = kind(
        vae=vae.eval(),
        text_encoder=transformers.CLIPTextModel(config).eval(),
        tokenizer=tokenizer,
        unet=model.eval(),
        scheduler=scheduler or sd_scheduler(diffusers.DDIMScheduler, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def sd_scheduler(kind: Any, **options: Any) -> Any:
    """Return a scheduler with the levels of Stable Diffusion."""
    return kind(**{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"} | options)


def old_layout(folder: Path) -> None:
    """Change a folder to what transformers 4 wrote: prefix, position_ids, vocab.json and merges.txt."""
    from safetensors.torch import load_file, save_file

    encoder, tokenizer = folder / "text_encoder" / "model.safetensors", folder / "tokenizer"
    weights = {f"text_model.{name.removeprefix('text_model.')}": one for name, one in load_file(encoder).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    save_file(weights, encoder)
    (tokenizer / "tokenizer.json").unlink()
    for file in tokenizer.iterdir():
        file.unlink()
    (tokenizer / "vocab.json").write_text(json.dumps(vocabulary()))
    (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({**special, "model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer"})
    )
    (tokenizer / "special_tokens_map.json").write_text(json.dumps(special))


@pytest.fixture(scope="session")
def pipeline() -> Any:
    """The pipeline for text to image."""
    return tiny_pipeline()


@pytest.fixture(scope="session")
def folder(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pipeline."""
    path = tmp_path_factory.mktemp("pipeline") / "tiny-sd"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def make() -> Make:
    """`tiny_pipeline`."""
    return tiny_pipeline


@pytest.fixture(scope="session")
def scheduler() -> Make:
    """`sd_scheduler`."""
    return sd_scheduler


@pytest.fixture(scope="session")
def to_old_layout() -> Callable[[Path], None]:
    """`old_layout`."""
    return old_layout
