"""Weights of diffusers' DiTTransformer2DModel for `dit`, such as those of facebook/DiT-XL-2-256."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from diffkit import UsageError

BLOCK = {
    "norm1.linear": "modulation",
    "attn1.to_out.0": "attention.out",
    "ff.net.0.proj": "mlp.linear1",
    "ff.net.2": "mlp.linear2",
}
WHOLE = {"proj_out_1": "modulation", "proj_out_2": "leave"}
EMBEDDER = "norm1.emb."


def dit_weights(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a DiTTransformer2DModel for a `dit` with `embedding: ho`, `norm_eps: 1e-5`.

    diffusers keeps one embedder of noise level and label in each block, and publishes the same weights for all of them;
    `dit` has one. Its sinusoid is [cos, sin] with the frequencies of `ho`, so the two halves of the columns that read
    it change places.

    Args:
        theirs: The state of the model of diffusers, by name.

    Returns:
        The state of `dit`, by name.

    Raises:
        UsageError: A name is unknown, or two blocks have different embedders (DK010).
    """
    ours: dict[str, Tensor] = {}
    pieces: dict[str, list[Tensor]] = {}
    for name, value in theirs.items():
        layer, _, kind = name.rpartition(".")
        found = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", layer)
        if found is None and layer in WHOLE:
            ours[f"{WHOLE[layer]}.{kind}"] = value
        elif found is None and layer == "pos_embed.proj":
            ours[f"enter.{kind}"] = value.flatten(1) if kind == "weight" else value
        elif found is not None and found[2].startswith(EMBEDDER):
            _add_once(ours, *_embedding(found[2].removeprefix(EMBEDDER), kind, value))
        elif found is not None and found[2] in BLOCK:
            ours[f"blocks.{found[1]}.{BLOCK[found[2]]}.{kind}"] = value
        elif found is not None and found[2] in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
            pieces.setdefault(f"blocks.{found[1]}.attention.qkv.{kind}", []).append(value)
        else:
            raise UsageError(f"{name[:80]!r} is not a weight of DiTTransformer2DModel", fix="pass its state_dict()")
    return ours | {name: torch.cat(three) for name, three in pieces.items()}


def _embedding(layer: str, kind: str, value: Tensor) -> tuple[str, Tensor]:
    """Return the name in `dit` of a weight of the embedder, and its values."""
    if layer == "class_embedder.embedding_table":
        return "embedding.table.weight", value
    name = f"embedding.{layer.removeprefix('timestep_embedder.').replace('_', '')}.{kind}"
    if name == "embedding.linear1.weight":
        value = value.roll(value.shape[1] // 2, 1)
    return name, value


def _add_once(ours: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add a weight that each block repeats."""
    if name in ours and not torch.equal(ours[name], value):
        raise UsageError(
            "the blocks of this model have different embedders of noise level and label, but dit has one",
            fix="pass weights whose blocks share one embedder, as published ones do",
        )
    ours[name] = value
