"""A codec in tiles: any convolutional codec on images that are too large for the memory of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

from pydantic import Field, JsonValue
from torch import Tensor, nn

from diffkit import Codec, CodecRecord, Data, DataSpec, Posterior, UsageError
from diffkit.tiles import Stage, Staged, in_tiles

NORMS = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
"""Layers that use the mean and the variance of a whole map."""


class Tiled(nn.Module, Codec):
    """Encode and decode in tiles that overlap; images that fit into one tile are computed whole.

    inner    the codec
    tile     side of a tile in positions of z
    overlap  positions of z that two tiles share, at most half of `tile`

    A codec that states its stages (`diffkit.tiles.Staged`), as those of this package and `diffusers-vae` do, is equal
    to the whole from an overlap of 8 on: attention is computed on whole maps, and group normalizations use the mean
    and the variance of whole maps. Another codec is equal if each output depends only on positions at most half of
    the overlap away; one with normalizations over the map is refused.

    Raises ValueError for such a codec, and if `overlap` is more than half of `tile`.
    """

    law_base: ClassVar[dict[str, JsonValue]] = {
        "inner": {"name": "kl-vae", "width": 8, "multipliers": [1, 2], "factor": 2},
        "tile": 16,
        "overlap": 8,
    }
    law_options = ({"inner": {"name": "vq-vae", "width": 8, "codes": 16}}, {"inner": "affine", "overlap": 0})
    law_exemptions: ClassVar[dict[str, str]] = {
        "round-trip": "an autoencoder loses information",
        "options": "tiles do not change the result",
    }

    def __init__(
        self, inner: Codec, tile: Annotated[int, Field(ge=2)] = 64, overlap: Annotated[int, Field(ge=0)] = 8
    ) -> None:
        super().__init__()
        if 2 * overlap > tile:
            raise ValueError(f"overlap must be at most half of tile, got {overlap} and {tile}")
        encoder_stages(inner)
        self.inner, self.tile, self.overlap = inner, tile, overlap

    @property
    def cache(self) -> bool:
        return self.inner.cache

    def fit(self, data: Data) -> str:
        return self.inner.fit(data)

    def record(self) -> CodecRecord | None:
        return self.inner.record()

    def spec(self, data: DataSpec) -> DataSpec:
        """Return the spec of z, that of the codec. Raises ValueError for data that is not images."""
        if len(data.size) != 2:
            raise ValueError(f"tiles are pieces of images, but the data has shape {data.shape}")
        return self.inner.spec(data)

    def posterior(self, x: Tensor) -> Posterior:
        spec = self.inner.spec(DataSpec(x.shape[1], tuple(x.shape[2:])))
        joined = in_tiles(encoder_stages(self.inner), x, spec.size[-1], self.tile, self.overlap)
        return Posterior.split(joined, spec.channels)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.posterior(x).sample(noise)

    def decode(self, z: Tensor) -> Tensor:
        """Decode z: (B, C', H, W) to images. Raises UsageError DK083 if finite codes give NaN or infinite values."""
        x = in_tiles(decoder_stages(self.inner), z, z.shape[-1], self.tile, self.overlap)
        if not bool(x.isfinite().all()) and bool(z.isfinite().all()):
            raise UsageError("the codec returns NaN or infinite values", code="DK083", fix="decode in float32")
        return x


def encoder_stages(codec: Codec) -> list[Stage]:
    """Return the stages of the encoder of a codec, see `Staged`; a codec that states none is one stage."""
    return (
        codec.encoder_stages() if isinstance(codec, Staged) else [_whole(codec, lambda x: codec.posterior(x).joined())]
    )


def decoder_stages(codec: Codec) -> list[Stage]:
    """Return the stages of the decoder of a codec, see `Staged`; a codec that states none is one stage."""
    return codec.decoder_stages() if isinstance(codec, Staged) else [_whole(codec, codec.decode)]


def _whole(codec: Codec, apply: Callable[[Tensor], Tensor]) -> Stage:
    """Return one stage for a half of a codec. Raises ValueError if the codec normalizes over whole maps."""
    if isinstance(codec, nn.Module) and any(isinstance(part, NORMS) for part in codec.modules()):
        name = type(codec).__name__
        raise ValueError(f"{name} normalizes over whole maps, so it must state its stages: diffkit.tiles.Staged")
    return Stage(apply, reach=None)
