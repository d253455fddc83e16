"""Options of a LoRA that diffusers writes into the header of a file: rank and alpha of each layer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from diffkit_diffusers.options import notes_of
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffkit import CheckpointError

KEY = "lora_adapter_metadata"
CHANGES = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""Options of peft under which a layer is not W + scale up down; a file may state them, but not use them."""
INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the weights of the model as they are."""
PLAIN = re.compile(r"[\w.^$|\\]{1,512}(?:\*[\w.^$|\\]{0,512}){0,2}")
"""Patterns for names of layers that are matched in a short time, whatever the name."""
Value = TypeVar("Value")


class Header(BaseModel):
    """The options of LoraConfig in peft that give the strength of an update; those that are absent have its defaults.

    A pattern is a regular expression for the end of a layer's name; the first one that matches gives its value.
    """

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, frozen=True)

    r: Annotated[int, Field(ge=1)] = 8
    lora_alpha: float = 8.0
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    use_rslora: bool = False

    @classmethod
    def read(cls, metadata: Mapping[str, str], part: str) -> Header | None:
        """Read the options of a part of the model.

        Args:
            metadata: the texts in the header of a file.
            part: `unet` or `text_encoder`.

        Returns:
            The options; None if the header states none for this part.

        Raises:
            CheckpointError: DK603, the header is damaged, or has an option that cannot be applied.
        """
        try:
            stated = json.loads(metadata.get(KEY, "{}"))
        except (ValueError, RecursionError) as error:
            raise _refused([f"{KEY} is not JSON: {str(error)[:120]}"]) from error
        if not isinstance(stated, dict):
            raise _refused([f"{KEY} is not a JSON object"])
        options = {name.removeprefix(f"{part}."): one for name, one in stated.items() if name.startswith(f"{part}.")}
        if not options:
            return None
        notes = [f"{part}.{name} is set, and is not supported" for name in CHANGES if options.get(name)]
        if options.get("init_lora_weights", True) not in INITIAL:
            notes.append(f"{part}.init_lora_weights changes the weights of the model, and is not supported")
        try:
            found = cls.model_validate_json(json.dumps({name: one for name, one in options.items() if one is not None}))
        except ValidationError as error:
            raise _refused([f"{part}.{note}" for note in notes_of(error)]) from error
        patterns = (*found.rank_pattern, *found.alpha_pattern)
        notes += [f"the pattern {one[:120]!r} is not supported" for one in patterns if not _is_pattern(one)]
        if notes:
            raise _refused(notes)
        return found

    def alpha(self, layer: str, rank: int) -> float:
        """Return alpha of a layer, so that its update is alpha / rank up down.

        Args:
            layer: name of the layer within its part.
            rank: rank of its tensors.

        Returns:
            alpha; with `use_rslora`, where the scale is alpha / sqrt(rank), times sqrt(rank).

        Raises:
            CheckpointError: DK603, the header states another rank.
        """
        stated = _matching(self.rank_pattern, layer, self.r)
        if stated != rank:
            raise _refused([f"{layer} has rank {stated} in the header, and {rank} in its tensors"])
        alpha = _matching(self.alpha_pattern, layer, self.lora_alpha)
        return alpha * math.sqrt(rank) if self.use_rslora else alpha


def _is_pattern(pattern: str) -> bool:
    try:
        return PLAIN.fullmatch(pattern) is not None and re.compile(pattern) is not None
    except re.error:
        return False


def _matching(patterns: Mapping[str, Value], layer: str, default: Value) -> Value:
    """Return the value of the first pattern that matches; transformers 4 puts text_model before names of layers."""
    names = (layer, f"text_model.{layer}")
    found = (one for key, one in patterns.items() if any(re.match(rf"(.*\.)?({key})$", name) for name in names))
    return next(found, default)


def _refused(notes: Sequence[Any]) -> CheckpointError:
    return CheckpointError(
        "the header of the adapter cannot be applied",
        code="DK603",
        fix="save it again with options that are supported, or merge it in diffusers",
        notes=notes,
    )
