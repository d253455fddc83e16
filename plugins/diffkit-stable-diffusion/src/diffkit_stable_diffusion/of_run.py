"""Parts of another run in a recipe: its codec and conditioners, and its network with a low-rank adapter that trains.

Their weights stay in that run. A checkpoint holds the SHA-256 of them, and the weights of the adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, MutableMapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import peft
import torch
from diffkit_diffusers.recipe import recipe_text
from diffkit_diffusers.vae import TINY
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from diffkit import (
    Assembly,
    CheckpointError,
    Codec,
    Conditioner,
    ConditionSpec,
    DataSpec,
    FilePath,
    Network,
    Shape,
    UsageError,
    assemble,
    load_recipe,
    open_run,
    run_from_weights,
    weights_hash,
)
from diffkit.conditioner import Encoded

from .lora import Names, Update, named
from .network import TextUNet
from .text import ClipText

HASH, ADAPTER = "sha256", ".lora_"
"""The buffer with the hash of a base, and what the names of an adapter's weights contain."""
A, B = ".lora_A.default.weight", ".lora_B.default.weight"


@lru_cache(maxsize=1)
def _trained(run: str, newest: float) -> Assembly:
    with torch.device("cpu"):
        return open_run(run, device="cpu").trained()


def base_of(run: str) -> Assembly:
    """Return the objects of a run with its weights, on the CPU. They are shared, so a caller copies what it changes.

    Raises UsageError if there is no run, and CheckpointError if it has no whole checkpoint.
    """
    folder = Path(run) / "checkpoints"
    return _trained(str(run), folder.stat().st_mtime if folder.is_dir() else 0.0)


class OfRun(nn.Module):
    """The common part: a module whose weights are those of a run, and whose state is their hash and the adapter."""

    inner: nn.Module

    def refer(self, module: nn.Module, run: str) -> None:
        """Take a module of a run as `inner`, with its hash."""
        self.run = run
        self.inner = module
        self.register_buffer(HASH, torch.frombuffer(bytearray.fromhex(weights_hash(module)), dtype=torch.uint8))
        self.expected: bytes | None = bytes(self.get_buffer(HASH).numpy())
        own: Any = self
        own.register_state_dict_post_hook(_leave_out)
        own.register_load_state_dict_pre_hook(_fill_in)

    def verify(self) -> None:
        """Raise CheckpointError DK603 if the state was saved with another base."""
        if self.expected is None or self.get_buffer(HASH).device.type == "meta":
            return
        if bytes(self.get_buffer(HASH).cpu().numpy()) != self.expected:
            raise other_base(self.run)
        self.expected = None


def _leave_out(module: nn.Module, state: MutableMapping[str, Any], prefix: str, local: Any) -> None:
    for name in [one for one in state if one.startswith(f"{prefix}inner.") and ADAPTER not in one]:
        del state[name]


def _fill_in(module: nn.Module, state: MutableMapping[str, Any], prefix: str, *rest: Any) -> None:
    assert isinstance(module, OfRun)
    saved = state.get(prefix + HASH)
    if saved is not None and not torch.equal(saved.cpu(), module.get_buffer(HASH).cpu()):
        raise other_base(module.run)
    state.update({f"{prefix}inner.{n}": v for n, v in module.inner.state_dict().items() if ADAPTER not in f".{n}"})


def other_base(run: str) -> CheckpointError:
    """Build the error for a base that has changed."""
    message = f"the weights of {run} have another hash than those that this run was trained on"
    return CheckpointError(message, code="DK603", fix="restore the base run, or name its copy in the recipe")


class RunCodec(OfRun, Codec):
    """The codec of another run as it is; its weights stay there, and checkpoints hold their hash alone.

    Use it beside `network: {name: lora}`, which needs that run too. `trained` of diffkit-latent copies the weights into
    the run instead, and scales the codes.

    run   folder of the run

    Raises UsageError if there is no run, and ValueError if its codec has no weights.
    """

    law_exemptions: ClassVar[Mapping[str, str]] = {
        "round-trip": "an autoencoder loses information",
    }

    def __init__(self, run: FilePath) -> None:
        super().__init__()
        found = base_of(run).codec
        if not isinstance(found, nn.Module):
            raise ValueError(f"run: the codec of {run} has no weights; name it in the recipe instead")
        self.refer(copy.deepcopy(found).eval().requires_grad_(False), run)

    @staticmethod
    def law_example(folder: Path) -> RunCodec:
        """Return an instance on which the laws are tested."""
        return RunCodec(example_run(folder))

    @property
    def codec(self) -> Codec:
        """The codec of the run."""
        self.verify()
        assert isinstance(self.inner, Codec)
        return self.inner

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.codec.encode(x, noise)

    def decode(self, z: Tensor) -> Tensor:
        return self.codec.decode(z)

    def spec(self, data: DataSpec) -> DataSpec:
        """Return the spec of z, that of the codec of the run."""
        return self.codec.spec(data)


class RunConditioner(OfRun, Conditioner):
    """A conditioner of another run, with its weights, which do not train.

    run   folder of the run
    of    name of the condition in that run

    Raises UsageError if there is no run, and ValueError if it does not have the condition, or another kind of it.
    """

    law_exemptions: ClassVar[Mapping[str, str]] = {
        "state": "the weights are those of another run, with its hash as state"
    }
    concat = False

    def __init__(self, condition: ConditionSpec, run: FilePath, of: str = "text") -> None:
        super().__init__()
        base = base_of(run).conditions
        if of not in base.conditioners or base.specs[of].dtype != condition.dtype:
            known = ", ".join(f"{name} ({one.dtype})" for name, one in base.specs.items()) or "none"
            raise ValueError(f"of: {run} has no condition {of} of dtype {condition.dtype}, but: {known}")
        self.condition = condition
        self.refer(copy.deepcopy(base.conditioners[of]).eval().requires_grad_(False), run)
        self.concat = self.conditioner.concat

    @staticmethod
    def law_example(folder: Path) -> RunConditioner:
        """Return an instance on which the laws are tested."""
        return RunConditioner(ConditionSpec((24,), "text"), example_run(folder))

    @property
    def conditioner(self) -> Conditioner:
        """The conditioner of the run."""
        self.verify()
        assert isinstance(self.inner, Conditioner)
        return self.inner

    @property
    def shape(self) -> tuple[int, ...]:
        return self.conditioner.shape

    def forward(self, raw: Tensor) -> Encoded:
        found: Encoded = self.conditioner(raw)
        return found

    def null(self) -> Encoded:
        return self.conditioner.null()


class LoRA(OfRun, Network):
    """The network of another run with a trained low-rank update of its attention: W + alpha / rank up down.

    Only the update trains and is saved; `up` starts at zero, so that training starts from the network of the run.

    run       folder of the run
    rank      rank of the update
    alpha     scale of the update, alpha / rank; default: the rank
    targets   ends of the names of the layers that are updated

    Raises UsageError if there is no run, ValueError if its network has another shape or none of these layers.
    Source: Hu et al. 2021 (arXiv:2106.09685), sec. 4.1, by the library peft.
    """

    law_exemptions: ClassVar[Mapping[str, str]] = {
        "state": "the weights of the base are those of another run, and its hash is part of the state",
        "scale-shift": "the law calls a network without a text",
    }

    def __init__(
        self,
        shape: Shape,
        run: FilePath,
        rank: Annotated[int, Field(ge=1)] = 4,
        alpha: Annotated[float, Field(gt=0)] | None = None,
        targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0"),
    ) -> None:
        super().__init__()
        base = base_of(run)
        if (base.shape.in_channels, base.shape.extra_channels, dict(base.shape.conditions)) != (
            shape.in_channels,
            shape.extra_channels,
            dict(shape.conditions),
        ):
            raise ValueError(f"run: the network of {run} was built for {base.shape}, but this recipe needs {shape}")
        self.shape, self.rank, self.alpha = shape, rank, float(rank if alpha is None else alpha)
        with torch.device("cpu"):
            self.refer(copy.deepcopy(base.network).requires_grad_(False), run)
            options: dict[str, Any] = {"r": rank, "lora_alpha": self.alpha, "target_modules": list(targets)}
            peft.inject_adapter_in_model(peft.LoraConfig(**options), self.inner)

    @staticmethod
    def law_example(folder: Path) -> LoRA:
        """Return an instance on which the laws are tested."""
        run = example_run(folder)
        return LoRA(base_of(run).shape, run)

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


def export_lora(run: Path | str, out: Path | str, names: Names = "diffusers", weights: str = "ema") -> Path:
    """Write the adapter of a run as one safetensors file that diffusers and other programs load.

    Args:
        run: the run directory, whose network is `lora`.
        out: the file to write.
        names: the names of its tensors, those of diffusers or of kohya's scripts.
        weights: "ema", "raw" or the name of an average; default "ema".

    Returns:
        The file.

    Raises:
        UsageError: DK081, the network of the run is not `lora`; DK080, the file exists.
    """
    network = open_run(run, device="cpu").trained(weights).network
    if not isinstance(network, LoRA):
        message = f"the network of {run} has no low-rank adapter"
        raise UsageError(message, code="DK081", fix="name a run that was trained with network: {name: lora, run: ...}")
    if Path(out).exists():
        raise UsageError(f"{out} exists already", code="DK080", fix="choose another file")
    tensors = {name: one.cpu().contiguous().clone() for name, one in named(network.updates(), "unet", names)}
    save_file(tensors, out, metadata={"format": "pt"})
    return Path(out)


def example_run(folder: Path) -> str:
    """Write a small run with the parts of Stable Diffusion and random weights, for tests; returns its directory."""
    clip = ClipText.law_example(folder)
    sections = {
        "name": "base",
        "data": {
            "name": "shape-only",
            "channels": 3,
            "size": [16, 16],
            "conditions": {"text": {"dtype": "text", "shape": [24]}},
        },
        "conditions": {"text": {"name": "clip-text", "config": clip.config}},
        "codec": {"name": "diffusers-vae", "config": {"_class_name": "AutoencoderKL", **TINY, "latent_channels": 4}},
        "schedule": "scaled-linear",
        "parameterization": "eps",
        "network": {"name": "stable-diffusion", **TextUNet.law_base},
        "train": {"steps": 0, "ema": []},
    }
    recipe = load_recipe(recipe_text("A base of tests", sections))
    made = assemble(recipe)
    assert isinstance(made.codec, nn.Module)
    components = {"codec": made.codec.state_dict(), "conditions/text": clip.state_dict()}
    run_from_weights(recipe, folder / "base", made.network.state_dict(), "random numbers", components)
    return str(folder / "base")
