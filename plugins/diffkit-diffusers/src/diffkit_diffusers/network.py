"""Networks: models of diffusers, `unet` with weights of a diffusers model, and a network on another time scale."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from diffkit import Network, RecipeError, Shape, UsageError, build

from .errors import not_a_model
from .folder import open_folder
from .unet_config import options_of, read_config
from .weights import unet_weights

ModelName = Literal["UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"]
CLASSES = {"UNet2DModel": "num_class_embeds", "UNet2DConditionModel": "num_class_embeds"}
DIT_CLASSES = "num_embeds_ada_norm"
TINY: dict[str, JsonValue] = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


class Diffusers(Network):
    """The class `model` of diffusers, built from the arguments `config`, or from `folder` with its weights.

    Channels, size and classes are those of the data; the null class is one more label. A folder's config.json must
    agree with them. `UNet2DConditionModel` takes `encoder_hidden_states` (B, L, D) as cond if its blocks attend to
    text. Only the listed classes are imported. `variant` chooses weights in `folder`, such as "fp16".

    Raises: RecipeError DK140 for unknown arguments, or arguments that do not fit the data; UsageError DK041.
    """

    law_base = {"config": TINY}  # noqa: RUF012 - read only

    def __init__(
        self,
        shape: Shape,
        model: ModelName = "UNet2DModel",
        config: dict[str, JsonValue] | None = None,
        folder: str | None = None,
        variant: str | None = None,
    ) -> None:
        super().__init__()
        if config is not None and folder is not None:
            raise RecipeError("config and folder are both given", code="DK140", fix="set only one of config and folder")
        model_class = getattr(importlib.import_module("diffusers"), model)
        found = open_folder(folder) if folder is not None else None
        given = _of_this_class(found.config(), model) if found is not None else dict(config or {})
        self.classes = shape.classes
        self.takes_label = shape.classes is not None or model == "DiTTransformer2DModel"
        try:
            self.model = model_class(**_arguments(model_class, model, given, shape, foreign=found is not None))
        except (ValueError, TypeError, NotImplementedError, ZeroDivisionError, KeyError) as error:
            raise RecipeError(
                f"{model} does not accept this config: {error}",
                code="DK140",
                fix="compare it with the config.json of a published model",
            ) from error
        if found is not None and next(self.model.parameters()).device.type != "meta":
            self._load(found.weights(variant))

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        """Apply the model to x.

        Args:
            x: (B, C, H, W).
            c_noise: (B,), passed as the timestep.
            label: (B,) long; default: the null class.
            encoder_hidden_states: (B, L, D), for UNet2DConditionModel; default None.

        Returns:
            (B, C', H, W).
        """
        extra: dict[str, Any] = {}
        if self.takes_label:
            null = torch.full((len(x),), self.classes or 0, device=x.device)
            extra["class_labels"] = null if label is None else label
        if type(self.model).__name__ == "UNet2DConditionModel":
            extra["encoder_hidden_states"] = encoder_hidden_states
        elif encoder_hidden_states is not None:
            raise UsageError(
                f"{type(self.model).__name__} does not attend to text, but encoder_hidden_states were given",
                code="DK041",
                fix="leave them out, or use model UNet2DConditionModel",
            )
        out: Tensor = self.model(x, timestep=c_noise, return_dict=False, **extra)[0]
        return out

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).splitlines()[:4]
            raise RecipeError(
                "the weights in folder do not fit its config",
                code="DK140",
                fix="take config.json and weights from the same folder",
                notes=first,
            ) from error


def _of_this_class(config: Mapping[str, Any], model: str) -> dict[str, Any]:
    if config.get("_class_name") != model:
        raise RecipeError(
            f"the folder holds a {str(config.get('_class_name'))[:64]}, but model is {model}",
            code="DK140",
            fix="set model to the class of the folder",
        )
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _arguments(
    model_class: Any, model: str, given: Mapping[str, Any], shape: Shape, *, foreign: bool
) -> dict[str, Any]:
    """Return the arguments of the constructor: those given, and those of the data, which must agree."""
    known = [name for name in inspect.signature(model_class.__init__).parameters if name != "self"]
    unknown = [name for name in given if name not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, 1)
        raise RecipeError(
            f"{model} has no argument {unknown[0][:64]!r}",
            code="DK140",
            hint=f'did you mean "{near[0]}"?' if near else None,
        )
    needed: dict[str, Any] = {"in_channels": shape.in_channels, "out_channels": shape.out_channels}
    if model in CLASSES:
        needed[CLASSES[model]] = None if shape.classes is None else shape.classes + 1
    else:
        needed[DIT_CLASSES] = shape.classes or 1
    size = shape.size[0] if len(set(shape.size)) == 1 else list(shape.size)
    if "sample_size" not in given or not foreign:
        needed["sample_size"] = size
    wrong = [name for name, value in needed.items() if name in given and given[name] != value]
    if wrong:
        raise RecipeError(
            f"config: {wrong[0]} is {given[wrong[0]]}, but this data needs {needed[wrong[0]]}",
            code="DK140",
            fix="remove it from config: the data determines it"
            if not foreign
            else "use data with the shape that the model was trained on",
        )
    return {**given, **needed}


class DiffusersUNet(Network):
    """The network `unet` with architecture and weights of a UNet2DModel in `folder`, for fine-tuning.

    `variant` chooses weights in `folder`, such as "fp16". The model must have the channels of the data and, for data
    with classes, one label more: the null class.
    Raises: UsageError DK080, DK081; CheckpointError DK603.
    """

    def __init__(self, shape: Shape, folder: str, variant: str | None = None) -> None:
        super().__init__()
        found = open_folder(folder)
        config = read_config(found.config())
        rows = None if shape.classes is None else shape.classes + 1
        theirs = (config.in_channels, config.out_channels, config.num_class_embeds)
        if theirs != (shape.in_channels, shape.out_channels, rows):
            ours = (shape.in_channels, shape.out_channels, rows)
            raise not_a_model(
                f"the model in {folder} has (channels in, out, labels) {theirs}, but this data needs {ours}"
            )
        self.unet = build("network", "unet", shape=shape, **options_of(config, shape.size))
        if next(self.unet.parameters()).device.type != "meta":
            self.unet.load_state_dict(unet_weights(found.weights(variant), config.layout))

    @staticmethod
    def law_example(folder: Path, shape: Shape) -> DiffusersUNet:
        """Return an instance on which the laws are tested, with the weights of a small model."""
        Diffusers(shape, config=TINY).model.save_pretrained(folder)
        return DiffusersUNet(shape, str(folder))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Apply `unet`: x (B, C, H, W), c_noise (B,), label (B,) long or None -> (B, C', H, W)."""
        out: Tensor = self.unet(x, c_noise, label)
        return out


class ScaledTime(Network):
    """Rescale the time of a network: inner(x, factor c_noise).

    Use factor 1000 / T for weights that were trained on T steps with timesteps 1000 (t - 1) / T.

    Source: the option rescale_timesteps of Nichol & Dhariwal 2021 (arXiv:2102.09672), authors' code.
    """

    def __init__(self, inner: Network, factor: Annotated[float, Field(gt=0)] = 1.0) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, **cond: Tensor) -> Tensor:
        """Apply `inner` with c_noise multiplied by `factor`.

        Args:
            x: Scaled noisy data: (B, C, *S).
            c_noise: The noise level: (B,).
            label: Classes: (B,) long; none by default.
            **cond: Further conditions of `inner`.

        Returns:
            The output: (B, C', *S).
        """
        given = cond if label is None else {**cond, "label": label}
        out: Tensor = self.inner(x, self.factor * c_noise, **given)
        return out
