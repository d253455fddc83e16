"""The network of another run with a low-rank adapter (LoRA) that trains, and its export to a file."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import peft
import torch
from diffkit_diffusers.folder import write_weights
from pydantic import Field
from torch import Tensor, nn

from diffkit import FilePath, Network, Parameterization, Schedule, Shape, UsageError, open_run, plain

from .lora_files import Names, Update, named
from .of_run import Base, OfRun, base_of, example_run

A, B = ".lora_A.default.weight", ".lora_B.default.weight"
"""The ends of the names that peft gives to the two weights of an update."""
SAME = 1e-3
"""The largest difference of alpha in equal schedules."""


class LoRA(OfRun, Network):
    """The network of another run with a trained low-rank update of its attention: W + alpha / rank up down.

    Only the update trains and is saved; `up` starts at zero, so that training starts from the network of the run. The
    parameterization must be that of the run; another schedule is a warning.

    run       folder of the run
    rank      rank of the update
    alpha     scale of the update, alpha / rank; default: the rank
    targets   ends of the names of the layers that are updated

    Raises UsageError if there is no run, ValueError if its network has another shape or parameterization, or none of
    these layers.
    Source: Hu et al. 2021 (arXiv:2106.09685), sec. 4.1, by the library peft.
    """

    law_exemptions: ClassVar[Mapping[str, str]] = {
        "state": "the weights of the base are those of another run, and its hash is part of the state",
        "scale-shift": "the law calls a network without a text",
    }

    def __init__(
        self,
        shape: Shape,
        schedule: Schedule,
        parameterization: Parameterization,
        run: FilePath,
        rank: Annotated[int, Field(ge=1)] = 4,
        alpha: Annotated[float, Field(gt=0)] | None = None,
        targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0"),
    ) -> None:
        super().__init__()
        base = base_of(run)
        own = base.assembly.shape
        if (own.in_channels, own.extra_channels, dict(own.conditions)) != (
            shape.in_channels,
            shape.extra_channels,
            dict(shape.conditions),
        ):
            raise ValueError(f"run: the network of {run} was built for {own}, but this recipe needs {shape}")
        _require_same(base, schedule, parameterization)
        self.shape, self.rank, self.alpha = shape, rank, float(rank if alpha is None else alpha)
        with torch.device("cpu"):
            self.refer(copy.deepcopy(base.assembly.network).requires_grad_(False), base)
            options: dict[str, Any] = {"r": rank, "lora_alpha": self.alpha, "target_modules": list(targets)}
            peft.inject_adapter_in_model(peft.LoraConfig(**options), self.inner)

    @staticmethod
    def law_example(folder: Path) -> LoRA:
        """Return an instance on which the laws are tested."""
        run = example_run(folder)
        own = base_of(run).assembly
        return LoRA(own.shape, own.schedule, own.parameterization, run)

    def block_modules(self) -> Iterable[nn.Module]:
        """Return the blocks of the network of the run."""
        assert isinstance(self.inner, Network)
        return self.inner.block_modules()

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | None = None,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """Apply the network of the run with the update; see its `forward` for the conditions."""
        self.verify()
        given = {"label": label, "text": text, "text_mask": text_mask, "concat": concat}
        out: Tensor = self.inner(x, c_noise, **{name: one for name, one in given.items() if one is not None})
        return out

    def updates(self) -> dict[str, Update]:
        """Return the updates by the names of layers in the model of diffusers."""
        state = self.inner.state_dict()
        downs = {name.removesuffix(A): value for name, value in state.items() if name.endswith(A)}
        return {
            name.removeprefix("model."): Update(value.detach(), state[name + B].detach(), self.alpha)
            for name, value in downs.items()
        }


def _require_same(base: Base, schedule: Schedule, parameterization: Parameterization) -> None:
    """Raise ValueError unless the network of a run predicts what the recipe trains; warn of other noise levels."""
    own = base.assembly
    named = own.recipe.parameterization.name
    if type(own.parameterization) is not type(parameterization):
        other = type(parameterization).__name__.lower()
        message = f"run: the network of {base.run} predicts {named}, but parameterization is {other}"
        raise ValueError(f"{message}; set parameterization: {named}")
    ends = [(one.t_noise, one.t_noise / 2) for one in (own.schedule, schedule)]
    pairs = [(own.schedule.level(t), schedule.level(s)) for t, s in zip(*ends, strict=True)]
    if any(abs(float(a.alpha) - float(b.alpha)) > SAME for a, b in pairs):
        message = f"{base.run} was trained with the schedule {own.recipe.schedule.name}, whose levels are others"
        warnings.warn(plain(f"{message}; set schedule as in its recipe.yaml"), stacklevel=2)


def export_lora(run: Path | str, out: Path | str, names: Names = "diffusers", weights: str = "ema") -> Path:
    """Write the adapter of a run as one safetensors file that diffusers and other programs load.

    Args:
        run: the run directory, whose network is `lora`.
        out: the file to write; missing folders are created.
        names: the names of its tensors, those of diffusers or of kohya's scripts.
        weights: "ema", "raw" or the name of an average; default "ema".

    Returns:
        The file.

    Raises:
        UsageError: DK081, the network of the run is not `lora`; DK080, the file exists.
        ResourceError: DK412, the file cannot be written.
    """
    file = Path(out)
    if file.exists():
        raise UsageError(f"{file} exists already", code="DK080", fix="choose another file")
    network = open_run(run, device="cpu").trained(weights).network
    if not isinstance(network, LoRA):
        message = f"the network of {run} has no low-rank adapter"
        raise UsageError(message, code="DK081", fix="name a run that was trained with network: {name: lora, run: ...}")
    write_weights(file, dict(named(network.updates(), "unet", names)))
    return file
