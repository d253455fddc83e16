"""Low-rank updates (LoRA) of weights in files with the names of diffusers or of kohya: read, merged, written.

A layer W becomes W + factor alpha / rank up down. Files state rank and alpha for each layer, as tensors or in the
header; without alpha it is the rank. Every tensor of a file must belong to a layer of the model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffkit import CheckpointError

from .lora_header import Header

Names = Literal["diffusers", "kohya"]
Part = Literal["unet", "text_encoder"]
BEGINNINGS: Mapping[Part, tuple[str, str]] = {
    "unet": ("unet.", "lora_unet_"),
    "text_encoder": ("text_encoder.", "lora_te_"),
}
"""How names of a part begin: those of diffusers, with dots, and those of kohya, with underscores."""
FIRST_OF_TWO = "lora_te1_"
"""How diffusers writes the text encoder in the names of kohya, as in models with two of them."""
ENDS = re.compile(
    r"(?P<layer>.+?)(?:"
    r"(?:\.lora_A|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)(?:\.default)?\.weight(?P<down>$)|"
    r"(?:\.lora_B|\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)(?:\.default)?\.weight(?P<up>$)|"
    r"\.alpha(?P<alpha>$))"
)
"""The end of a name after the layer, in the spellings since 2023."""
LAYERS = (nn.Linear, nn.Conv2d)


@dataclass
class Update:
    """A low-rank update of one layer; `names` are the tensors of the file that it comes from."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None
    names: tuple[str, ...] = ()

    def delta(self, shape: torch.Size) -> Tensor:
        """Return alpha / rank up down in the shape of a weight. Raises CheckpointError DK603 if it does not fit."""
        if self.down is None or self.up is None:
            raise _misfit(f"{self.names[0]} has no other half")
        down, up = self.down.double(), self.up.double()
        if min(down.ndim, up.ndim) < 2 or not down.numel():
            raise _misfit(f"{self.names[0]}: {tuple(up.shape)} times {tuple(down.shape)} is not an update of low rank")
        rank = down.shape[0]
        kernel = down.shape[2:].numel() == shape[2:].numel() or down.ndim == len(shape)
        fits = up.shape[:2] == (shape[0], rank) and down[0].numel() == shape[1:].numel() and up[0].numel() == rank
        if not fits or not kernel:
            raise _misfit(
                f"{self.names[0]}: {tuple(up.shape)} times {tuple(down.shape)} does not update {tuple(shape)}"
            )
        scale = 1.0 if self.alpha is None else self.alpha / rank
        return (scale * (up.flatten(1) @ down.flatten(1))).reshape(shape)


def merge(model: nn.Module, part: Part, weights: Mapping[str, Tensor], factor: float) -> Collection[str]:
    """Add the updates of a part of the model to its weights, in place.

    Args:
        model: the U-Net, or the text encoder.
        part: which of them.
        weights: the tensors of a file; with an attribute `metadata`, the header of the file.
        factor: weight of the updates.

    Returns:
        The names of the tensors that were used.

    Raises:
        CheckpointError: DK603, the model does not have a layer, an update does not fit it, or the header has an option
            that cannot be applied.
    """
    header = Header.read(getattr(weights, "metadata", {}), part)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    used: list[str] = []
    for name, update in _updates(part, weights, layers).items():
        if header is not None and update.down is not None and update.down.ndim:
            if update.alpha is not None:
                raise _misfit(f"{update.names[0]}: alpha is stated by a tensor and by the header of the file")
            update.alpha = header.alpha(name, update.down.shape[0])
        with torch.no_grad():
            weight = layers[name].weight
            weight.add_((factor * update.delta(weight.shape)).to(weight))
        used += update.names
    return used


def _updates(part: Part, weights: Mapping[str, Tensor], layers: Collection[str]) -> dict[str, Update]:
    """Return the updates in a file by the names of layers."""
    dotted, joined = BEGINNINGS[part]
    begins = (dotted, joined, *((FIRST_OF_TWO,) if part == "text_encoder" else ()))
    by_kohya = {name.replace(".", "_"): name for name in layers}
    found: dict[str, Update] = {}
    for name, tensor in weights.items():
        begin = next((one for one in begins if name.startswith(one)), None)
        if begin is None:
            continue
        end = ENDS.fullmatch(name.removeprefix(begin))
        own = begin == dotted
        layer = "" if end is None else _present(end["layer"]) if own else end["layer"].removeprefix("text_model_")
        layer = layer if own else by_kohya.get(layer, layer)
        if end is None or layer not in layers:
            raise _misfit(f"the model has no layer for {name[:120]}")
        update = found.setdefault(layer, Update())
        update.names += (name,)
        kind = next(kind for kind in ("down", "up", "alpha") if end[kind] is not None)
        if getattr(update, kind) is not None:
            raise _misfit(f"{name} is a second {kind} of the layer {layer}, beside {', '.join(update.names[:-1])}")
        if kind == "alpha" and tensor.numel() != 1:
            raise _misfit(f"{name} has the shape {tuple(tensor.shape)}, and is not one number")
        setattr(update, kind, float(tensor) if kind == "alpha" else tensor)
    return found


def _misfit(message: str) -> CheckpointError:
    return CheckpointError(message, code="DK603", fix="use the file with the model that it was trained on")


def _present(layer: str) -> str:
    """Return the present name of a layer of diffusers or transformers."""
    layer = layer.replace(".processor.", ".").removeprefix("text_model.")
    return f"{layer}.0" if layer.endswith(".to_out") else layer


def named(updates: Mapping[str, Update], part: Part, names: Names) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file.

    Args:
        updates: updates by the names of layers.
        part: the part of the model that they belong to.
        names: `diffusers`, whose factor alpha / rank is in `lora_B`, or `kohya`, with alpha.

    Returns:
        Names and tensors.
    """
    for layer, update in updates.items():
        assert update.down is not None
        assert update.up is not None
        rank = update.down.shape[0]
        alpha = float(rank) if update.alpha is None else update.alpha
        if names == "diffusers":
            yield f"{BEGINNINGS[part][0]}{layer}.lora_A.weight", update.down
            yield f"{BEGINNINGS[part][0]}{layer}.lora_B.weight", update.up * (alpha / rank)
        else:
            begin = BEGINNINGS[part][1] + layer.replace(".", "_")
            yield f"{begin}.lora_down.weight", update.down
            yield f"{begin}.lora_up.weight", update.up
            yield f"{begin}.alpha", torch.tensor(alpha)
