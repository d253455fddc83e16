"""Parts of another run in a recipe: its codec and conditioners, and the base of its network with an adapter.

Their weights stay in that run. A checkpoint holds their SHA-256, and the weights of the adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from diffkit_diffusers.recipe import recipe_text
from diffkit_diffusers.vae import TINY
from torch import Tensor, nn

from diffkit import (
    Assembly,
    CheckpointError,
    Codec,
    Conditioner,
    ConditionSpec,
    DataSpec,
    FilePath,
    assemble,
    load_recipe,
    open_run,
    run_from_weights,
    weights_hash,
)
from diffkit.codec import Posterior
from diffkit.conditioner import Encoded
from diffkit.tiles import Stage, Staged

from .network import TextUNet
from .text import ClipText

HASH, ADAPTER = "sha256", ".lora_"
"""The buffer with the hash of a base, and what the names of an adapter's weights contain, as peft writes them."""


class Base:
    """A run with its weights, on the CPU. A component that is made of it holds it until it is first used.

    So all components of a recipe share one reading of the run, and training does not keep it in memory.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        with torch.device("cpu"):
            self.assembly: Assembly = open_run(run, device="cpu").trained()

    def __deepcopy__(self, memo: object) -> Base:
        """Copies of a component share the base."""
        return self


_held: WeakValueDictionary[tuple[str, float], Base] = WeakValueDictionary()


def base_of(run: str) -> Base:
    """Return the objects of a run, from a component that has loaded the run, else from its files. They are shared, so
    copy what is changed.

    Raises UsageError if there is no run, and CheckpointError if it has no whole checkpoint.
    """
    folder = Path(run) / "checkpoints"
    key = str(run), folder.stat().st_mtime if folder.is_dir() else 0.0
    base = _held.get(key) or Base(str(run))
    _held[key] = base
    return base


class OfRun(nn.Module):
    """Base of modules with the weights of another run, whose state holds only the hash of the weights and the
    adapter.
    """

    inner: nn.Module

    def refer(self, module: nn.Module, base: Base) -> None:
        """Take a module of a base as `inner`, with its hash. The base is held until `inner` is first used."""
        self.run = base.run
        self.base: Base | None = base
        self.inner = module
        self.register_buffer(HASH, torch.frombuffer(bytearray.fromhex(weights_hash(module)), dtype=torch.uint8))
        self.expected: bytes | None = bytes(self.get_buffer(HASH).numpy())
        own: Any = self
        own.register_state_dict_post_hook(_leave_out)
        own.register_load_state_dict_pre_hook(_fill_in)

    def verify(self) -> None:
        """Release the base. Raise CheckpointError DK603 if the state was saved with another one.

        Everything that computes with `inner` calls it first. Queries of shapes do not, because components that are
        built later share the base.
        """
        self.base = None
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


class RunCodec(OfRun, Codec, Staged):
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
        base = base_of(run)
        found = base.assembly.codec
        if not isinstance(found, nn.Module):
            raise ValueError(f"run: the codec of {run} has no weights; name it in the recipe instead")
        self.refer(copy.deepcopy(found).eval().requires_grad_(False), base)

    @staticmethod
    def law_example(folder: Path) -> RunCodec:
        """Return an instance on which the laws are tested."""
        return RunCodec(example_run(folder))

    @property
    def codec(self) -> Codec:
        """The codec of the run, not verified."""
        assert isinstance(self.inner, Codec)
        return self.inner

    @property
    def verified(self) -> Codec:
        """The codec of the run, to compute with."""
        self.verify()
        return self.codec

    def posterior(self, x: Tensor) -> Posterior:
        return self.verified.posterior(x)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.verified.encode(x, noise)

    def decode(self, z: Tensor) -> Tensor:
        return self.verified.decode(z)

    def encoder_stages(self) -> list[Stage]:
        codec = self.verified
        if isinstance(codec, Staged):
            return codec.encoder_stages()
        return [Stage(lambda x: codec.posterior(x).joined(), local=False)]

    def decoder_stages(self) -> list[Stage]:
        codec = self.verified
        return codec.decoder_stages() if isinstance(codec, Staged) else [Stage(codec.decode, local=False)]

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
    concat = inpaints = False

    def __init__(self, condition: ConditionSpec, run: FilePath, of: str = "text") -> None:
        super().__init__()
        base = base_of(run)
        found = base.assembly.conditions
        if of not in found.conditioners or _kind(found.specs[of]) != _kind(condition):
            known = ", ".join(f"{name} ({_kind(one)})" for name, one in found.specs.items()) or "none"
            raise ValueError(f"of: {run} has no condition {of} of {_kind(condition)}, but: {known}")
        self.condition = condition
        self.refer(copy.deepcopy(found.conditioners[of]).eval().requires_grad_(False), base)
        own = found.conditioners[of]
        self.concat, self.inpaints = own.concat, own.inpaints

    @staticmethod
    def law_example(folder: Path) -> RunConditioner:
        """Return an instance on which the laws are tested."""
        return RunConditioner(ConditionSpec((24,), "text"), example_run(folder))

    @property
    def conditioner(self) -> Conditioner:
        """The conditioner of the run, not verified."""
        assert isinstance(self.inner, Conditioner)
        return self.inner

    @property
    def shape(self) -> tuple[int, ...]:
        return self.conditioner.shape

    def forward(self, raw: Tensor) -> Encoded:
        self.verify()
        found: Encoded = self.conditioner(raw)
        if isinstance(found, tuple) or found.is_meta:
            return found
        return found.to(raw.device)  # a codec of the conditioner may compute on another device

    def null(self) -> Encoded:
        self.verify()
        return self.conditioner.null()


def _kind(condition: ConditionSpec) -> str:
    """Return dtype, shape and number of classes of a condition, as far as a conditioner is built for them."""
    if condition.dtype == "text":  # of any length
        return "dtype text"
    classes = "" if condition.classes is None else f", {condition.classes} classes"
    return f"dtype {condition.dtype}, shape {condition.shape}{classes}"


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
