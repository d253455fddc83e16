"""Autoencoders of diffusers as codecs, whole or in tiles, and written back as folders."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn

from diffkit import (
    Codec,
    CodecRecord,
    DataSpec,
    FilePath,
    Posterior,
    RecipeError,
    UsageError,
    open_run,
    weights_hash,
)
from diffkit.codec import code_spec, require_multiples
from diffkit.tiles import Stage, Staged, in_tiles

from .errors import REFUSALS, inexpressible, not_a_model
from .folder import open_folder, write_model

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
LOG_VARIANCE = (-30.0, 20.0)
"""The range of the log-variance of a posterior, as in diffusers."""
TINY: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
Positive = Annotated[int, Field(ge=1)]


class DiffusersVAE(nn.Module, Codec, Staged):
    """An AutoencoderKL or AutoencoderTiny in a folder of diffusers; its config shifts and scales z.

    folder    the folder of the model, or of a pipeline with the folder vae; only safetensors are read
    config    what config.json holds, in place of a folder: the weights come from the checkpoint of the run
    variant   weights to read, such as fp16; None takes those without a variant, or the only ones
    dtype     type in which the network computes; float16 and bfloat16 may return NaN, which is an error
    tile      side of the tiles in pixels of x, for images larger than that; None computes the whole image
    overlap   pixels that two tiles share; from 8 latents on the result is that of the whole image
    cache     whether the posteriors of the training examples are kept on disk

    Tiles save memory of the device: the maps between two stages of the network lie in the memory of the CPU, and group
    normalizations use the mean and variance of the whole map, for which each tile is computed about 1.5 times. The
    middle of the network, with its attention, is computed whole on maps of the size of the latents.

    A run stores the weights and the configuration: it needs the folder no longer.
    Raises UsageError DK080 if the folder holds no such model, DK083 for other sizes and for NaN.
    """

    cache: bool = False
    law_exemptions = {"round-trip": "an autoencoder loses information"}  # noqa: RUF012 - read only

    def __init__(
        self,
        folder: FilePath | None = None,
        config: dict[str, JsonValue] | None = None,
        variant: str | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        tile: Positive | None = None,
        overlap: Annotated[int, Field(ge=0)] = 64,
        cache: bool = False,
        record: CodecRecord | None = None,
    ) -> None:
        super().__init__()
        if (folder is None) == (config is None):
            raise RecipeError("give either folder or config", code="DK140", fix="folder: the folder of an autoencoder")
        self.cache, self._record = cache, record
        self._has_source = folder is not None
        if folder is not None and record is None:
            found = open_folder(folder, "vae")
            self.model = _built(found.config(), folder)
            _load(self.model, found.weights(variant, pickles=False), folder)
        else:
            self.model = _built(config or (record.options if record else {}), "the recipe")
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.to(self.dtype).eval().requires_grad_(False)
        options = self.model.config
        self.deterministic = type(self.model).__name__ == "AutoencoderTiny"
        widths = options.encoder_block_out_channels if self.deterministic else options.block_out_channels
        self.factor = 2 ** (len(widths) - 1)
        if tile is not None and (tile % self.factor or overlap % self.factor or 2 * overlap > tile):
            raise ValueError(
                f"tile and overlap must be multiples of {self.factor}, and overlap at most tile / 2: {tile}, {overlap}"
            )
        self.tile, self.overlap = tile, overlap
        mean, std = (_numbers(options, name) for name in ("latents_mean", "latents_std"))
        self.shift = mean or _numbers(options, "shift_factor") or [0.0]
        scale = _numbers(options, "scaling_factor") or [0.0]
        if 0.0 in (*scale, *(std or ())):
            name = "scaling_factor" if scale == [0.0] else "latents_std"
            raise _refused(type(self.model).__name__, "the recipe", f"{name} is {options[name]}")
        self.scale = [scale[0] / one for one in std or (1.0,)]

    @staticmethod
    def law_example(folder: Path) -> DiffusersVAE:
        """Return an instance on which the laws are tested: a small AutoencoderKL with random weights."""
        model = importlib.import_module("diffusers").AutoencoderKL(**TINY)
        write_model(folder / "vae", "AutoencoderKL", _config(model), model.state_dict())
        return DiffusersVAE(str(folder / "vae"))

    def posterior(self, x: Tensor) -> Posterior:
        """Return the distribution of the codes of x: (B, C, H, W), shifted and scaled."""
        require_multiples(x.shape[-2:], self.factor)
        return self._posterior_of(self._through(_encoder(self.model), x, x.shape[-1] // self.factor))

    def _posterior_of(self, out: Tensor) -> Posterior:
        """Return the posterior that an output of the encoder states."""
        if self.deterministic:
            return Posterior(self._scaled(out))
        mean, log_variance = out.chunk(2, dim=1)
        std = (0.5 * log_variance.clamp(*LOG_VARIANCE)).exp()
        return Posterior(self._scaled(mean), std * _column(self.scale, std))

    def record(self) -> CodecRecord | None:
        """Return the hash of the weights in the folder, and the configuration of the model; None for `config`."""
        if self._record is None and self._has_source:
            options = json.loads(json.dumps({"_class_name": type(self.model).__name__, **_config(self.model)}))
            self._record = CodecRecord(weights_hash(self.model), options)
        return self._record

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.posterior(x).sample(noise)

    def decode(self, z: Tensor) -> Tensor:
        return self._through(_decoder(self.model), self._unscaled(z), z.shape[-1])

    def encoder_stages(self) -> list[Stage]:
        end = Stage(lambda out: self._posterior_of(out.float()).joined())
        return [Stage(lambda x: x.to(self.dtype)), *_encoder(self.model), end]

    def decoder_stages(self) -> list[Stage]:
        return [Stage(lambda z: self._unscaled(z).to(self.dtype)), *_decoder(self.model), Stage(Tensor.float)]

    def spec(self, data: DataSpec) -> DataSpec:
        """Return the spec of z: unbounded, with `latent_channels` channels, each side divided by the factor."""
        config = self.model.config
        return code_spec(data, config.in_channels, config.latent_channels, self.factor)

    def _through(self, stages: list[Stage], x: Tensor, coarse: int) -> Tensor:
        """Apply a half of the network to x in its own dtype, in tiles if x is larger than one; returns the dtype of
        x.
        """
        with torch.autocast(x.device.type, enabled=False):
            inside = x.to(self.dtype)
            if self.tile is None:
                for stage in stages:
                    inside = stage.apply(inside)
            else:
                inside = in_tiles(stages, inside, coarse, self.tile // self.factor, self.overlap // self.factor)
        if self.dtype != torch.float32 and not bool(inside.isfinite().all()) and bool(x.isfinite().all()):
            name = str(self.dtype).removeprefix("torch.")
            raise UsageError(
                f"the autoencoder returns NaN or infinite values in {name}", code="DK083", fix="set dtype: float32"
            )
        return inside.to(x.dtype)

    def _unscaled(self, z: Tensor) -> Tensor:
        return z / _column(self.scale, z) + _column(self.shift, z)

    def _scaled(self, z: Tensor) -> Tensor:
        return (z - _column(self.shift, z)) * _column(self.scale, z)


def export_vae(run: Path | str, out: Path | str, *, weights: str = "ema") -> Path:
    """Export the codec of a run as a folder that diffusers loads. Its config has the shift and the scale of the codes
    on which the run was trained.

    Args:
        run: the run directory; its codec is a `diffusers-vae`, alone or within another codec.
        out: the folder to create.
        weights: "ema", "raw" or the name of an average; default "ema".

    Returns:
        The folder.

    Raises:
        UsageError: DK080, `out` is not empty; DK081, the codec is not an autoencoder of diffusers with shifted and
            scaled codes.
    """
    codec: Any = open_run(run, device="cpu").trained(weights).codec
    inside = list(codec.modules()) if isinstance(codec, nn.Module) else []
    found = next((one for one in inside if isinstance(one, DiffusersVAE)), None)
    if found is None:
        name = type(codec).__name__
        raise inexpressible(f"the codec {name} is not an autoencoder of diffusers", fix="use codec diffusers-vae")
    config = {**_config(found.model), **_scales(codec, found)}
    write_model(Path(out), type(found.model).__name__, config, found.model.state_dict())
    return Path(out)


def _scales(codec: Codec, inside: DiffusersVAE) -> dict[str, Any]:
    """Return the options of a config that shift and scale latents of `inside` as `codec` does; empty if its own do.

    They are the line through the codes of a random image, channel by channel.

    Raises:
        UsageError: DK081, the codes are not on a line, or the class has no options for several channels.
    """
    side, options = 16 * inside.factor, inside.model.config
    x = torch.rand(1, options.in_channels, side, side, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
    with torch.no_grad():
        own, codes = inside.encode(x).double(), codec.encode(x).double()
        same = own.shape == codes.shape
        latents = inside._unscaled(own).flatten(2)[0] if same else own
    if same and torch.allclose(own, codes, rtol=1e-5, atol=1e-5 * float(own.std())):
        return {}
    if same:
        centred = latents - latents.mean(1, keepdim=True)
        scale = (centred * codes.flatten(2)[0]).sum(1) / centred.square().sum(1)
        shift = latents.mean(1) - codes.flatten(2)[0].mean(1) / scale
        found = (latents - shift[:, None]) * scale[:, None]
        same = bool(torch.allclose(found, codes.flatten(2)[0], rtol=1e-4, atol=1e-4 * float(codes.std())))
    several = same and not (_equal(scale, scale) and _equal(shift, 1 / scale))
    if not same or (several and "latents_mean" not in options):
        message = f"the codec {type(codec).__name__} changes codes in a way that a config of diffusers cannot state"
        raise inexpressible(message, fix="export the run of the autoencoder")
    if several:
        stated = {"latents_mean": shift.tolist(), "latents_std": (1 / scale).tolist()}
        return {"scaling_factor": 1.0, "shift_factor": None, **stated}
    plain = {"scaling_factor": float(scale.mean()), "shift_factor": float(shift.mean())}
    return {**plain, **{name: None for name in ("latents_mean", "latents_std") if options.get(name) is not None}}


def _equal(values: Tensor, size: Tensor) -> bool:
    """Return whether values are equal up to the rounding of float32 at a size."""
    return bool((values - values.mean()).abs().max() <= 1e-4 * size.abs().max())


def _built(config: Mapping[str, Any], folder: str) -> Any:
    """Build the model of a configuration with random weights. Raises UsageError DK080."""
    name = config.get("_class_name")
    if name not in CLASSES:
        raise not_a_model(
            f"{folder} holds a {str(name)[:64]}, but codec diffusers-vae reads {' and '.join(CLASSES)}",
            fix="name the folder of an autoencoder",
        )
    model_class = getattr(importlib.import_module("diffusers"), name)
    given = {option: value for option, value in config.items() if not option.startswith("_")}
    known = {*inspect.signature(model_class.__init__).parameters, "block_out_channels"}
    if unknown := sorted(given.keys() - known):
        raise not_a_model(f"{name} has no option {unknown[0][:64]!r}", fix="update diffusers, or remove the option")
    if name == "AutoencoderTiny":  # its constructor stores the channels of the decoder under this name too
        given.pop("block_out_channels", None)
    try:
        made = model_class(**given)
    except REFUSALS as error:
        raise _refused(name, folder, error) from error
    taken, returned = made.config.in_channels, made.config.out_channels
    if taken != returned:
        message = f"the autoencoder in {folder} takes images of {taken} channels and returns images of {returned}"
        raise not_a_model(message, fix="name the folder of an autoencoder whose output is like its input")
    return made


def _refused(name: str, folder: str, reason: object) -> UsageError:
    message = f"{name} does not accept the config in {folder}: {' '.join(str(reason).split())[:240]}"
    return not_a_model(message, fix="copy config.json of the model again")


def _numbers(options: Mapping[str, Any], name: str) -> list[float] | None:
    """Return the numbers of an option of a config, also of a single one; None without it. Raises UsageError DK080."""
    value = options.get(name)
    if value is None:
        return None
    found = list(value) if isinstance(value, list | tuple) else [value]
    if not found or not all(isinstance(one, int | float) and math.isfinite(one) for one in found):
        raise _refused(str(options.get("_class_name", "the model")), "the recipe", f"{name} is {str(value)[:64]}")
    return [float(one) for one in found]


def _load(model: Any, weights: Mapping[str, Tensor], folder: str) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise not_a_model(
            f"the weights in {folder} do not fit its config",
            fix="take config.json and weights from the same folder",
            notes=[line.strip()[:240] for line in str(error).splitlines()[1:5]],
        ) from error


def _config(model: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(model.config).items() if not name.startswith("_")}


def _encoder(model: Any) -> list[Stage]:
    """Return the stages of the encoder, from x to the moments of the posterior, or to z."""
    if type(model).__name__ == "AutoencoderTiny":
        return [Stage(lambda x: x.add(1).div(2)), *map(Stage.of, model.encoder.layers)]
    inside = model.encoder
    stages = [Stage.of(inside.conv_in)]
    for block in inside.down_blocks:
        stages += _block(block, "downsamplers")
    return [*stages, Stage(inside.mid_block, local=False), _end(inside), *_optional(model.quant_conv)]


def _decoder(model: Any) -> list[Stage]:
    """Return the stages of the decoder."""
    if type(model).__name__ == "AutoencoderTiny":
        first, last = Stage(lambda z: torch.tanh(z / 3) * 3), Stage(lambda x: x.mul(2).sub(1))
        return [first, *map(Stage.of, model.decoder.layers), last]
    inside = model.decoder
    stages = [*_optional(model.post_quant_conv), Stage.of(inside.conv_in), Stage(inside.mid_block, local=False)]
    for block in inside.up_blocks:
        stages += _block(block, "upsamplers")
    return [*stages, _end(inside)]


def _block(block: Any, resampling: str) -> list[Stage]:
    """Return the stages of a block; one with attention is a single stage that is not local."""
    if hasattr(block, "attentions"):
        return [Stage(block, local=False)]
    resnets = [Stage(partial(part, temb=None), norms=(part.norm1, part.norm2)) for part in block.resnets]
    return [*resnets, *map(Stage.of, getattr(block, resampling) or ())]


def _end(half: Any) -> Stage:
    return Stage.of(nn.Sequential(half.conv_norm_out, half.conv_act, half.conv_out))


def _optional(part: nn.Module | None) -> list[Stage]:
    return [] if part is None else [Stage.of(part)]


def _column(values: tuple[float, ...] | list[float], like: Tensor) -> Tensor:
    """Return one value, or one per channel, to broadcast to (B, C, H, W)."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
