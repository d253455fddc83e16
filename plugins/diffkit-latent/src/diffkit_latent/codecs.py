"""The codecs: an autoencoder whose codes have a normal posterior, and one whose codes are those of a codebook."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from diffkit import Data, DataSpec, Posterior, Reconstruction, TrainableCodec, UsageError
from diffkit.codec import code_spec, require_multiples
from diffkit.data import stack
from diffkit.tiles import Stage, Staged

from .convolutional import Convolutional
from .patches import Patches
from .quantizer import Quantizer

Count = Annotated[int, Field(ge=1)]
LOG_VARIANCE = (-30.0, 20.0)
"""The range of the log-variance of a posterior."""
MOST_EXAMPLES, MOST_ENCODED = 2000, 256
"""Training examples from which a start is computed, and those whose codes start a codebook."""
TOGETHER = 16
"""Examples that are encoded at a time."""
START_LOG_VARIANCE = -6.0
"""What is added to the log-variance, so that posteriors start near std 0.05, which hides little of codes of std 1."""


class Autoencoder(TrainableCodec, Staged):
    """Base of the autoencoders of this package; a subclass defines the meaning of the encoder's output.

    Without `multipliers` encoder and decoder are those of `Patches`, with a `factor`. With `multipliers` they are those
    of `Convolutional`, and the factor follows.

    Raises ValueError for data that is not images, and for `multipliers`, `factor` and `attention` that do not fit.
    """

    def __init__(
        self,
        spec: DataSpec,
        outputs: int,
        codes: int,
        factor: int,
        width: int,
        blocks: int,
        multipliers: tuple[int, ...],
        attention: tuple[int, ...],
    ) -> None:
        super().__init__()
        if len(spec.size) != 2:
            raise ValueError(f"the codec takes images, but the data has shape {spec.shape}")
        if multipliers and factor != 2 ** (len(multipliers) - 1):
            raise ValueError(
                f"{len(multipliers)} multipliers give the factor {2 ** (len(multipliers) - 1)}, but factor is {factor}"
            )
        if attention and not multipliers:
            raise ValueError("attention needs multipliers: the networks on patches have no attention")
        sides = [spec.size[0] // 2**level for level in range(len(multipliers))]
        if absent := sorted(set(attention) - set(sides)):
            raise ValueError(f"attention is {absent[0]}, but the maps have the sides {', '.join(map(str, sides))}")
        self.data_channels, self.channels, self.factor = spec.channels, codes, factor
        levels = [level for level, side in enumerate(sides) if side in attention]
        self.halves: Patches | Convolutional = (
            Convolutional(spec.channels, outputs, codes, width, multipliers, blocks, levels)
            if multipliers
            else Patches(spec.channels, outputs, codes, factor, width, blocks)
        )

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last convolution of the decoder."""
        return self.halves.last_layer

    def fit(self, data: Data) -> str:
        """Start the linear path of patches as principal components of training examples; return a line about it.

        Convolutional halves keep their random weights.
        """
        return self.halves.fit(self._batches(data, MOST_EXAMPLES)) if isinstance(self.halves, Patches) else ""

    def _batches(self, data: Data, most: int) -> Iterator[Tensor]:
        """Yield at most `most` training examples, evenly spread, on the device of the codec: (TOGETHER, C, H, W)."""
        train = data.split("train")
        count = min(len(train), most)
        rows = [i * len(train) // count for i in range(count)]
        for start in range(0, count, TOGETHER):
            raw, _ = stack(train, rows[start : start + TOGETHER])
            yield data.to_model_range(raw.to(self.last_layer.device))

    def spec(self, data: DataSpec) -> DataSpec:
        """Return the spec of z: unbounded, with `channels` channels, each side divided by the factor."""
        return code_spec(data, self.data_channels, self.channels, self.factor)

    @abstractmethod
    def posterior_of(self, output: Tensor) -> Posterior:
        """Return the posterior that an output of the encoder states."""

    def posterior(self, x: Tensor) -> Posterior:
        return self.posterior_of(self.encoder_output(x))

    def encoder_stages(self) -> list[Stage]:
        return [*self.halves.encoder_stages(), Stage(lambda output: self.posterior_of(output).joined())]

    def decoder_stages(self) -> list[Stage]:
        return [Stage(self.decoder_input), *self.halves.decoder_stages()]

    def decode(self, z: Tensor) -> Tensor:
        """Decode z: (B, C', H, W) to images. Raises UsageError DK083 if finite codes give NaN or infinite values."""
        x = self.reconstruct(z)
        if not bool(x.isfinite().all()) and bool(z.isfinite().all()):
            raise UsageError(
                f"the codec returns NaN or infinite values in {str(x.dtype).removeprefix('torch.')}",
                code="DK083",
                fix="decode in float32, or train the codec with a lower learning rate or train.clip",
            )
        return x

    def reconstruct(self, z: Tensor) -> Tensor:
        """Apply the decoder to z: (B, C', H, W)."""
        return self.halves.decode(self.decoder_input(z))

    def decoder_input(self, z: Tensor) -> Tensor:
        """Return what the decoder takes for z: (B, C', H, W); z by default."""
        return z

    def encoder_output(self, x: Tensor) -> Tensor:
        """Apply the encoder to x: (B, C, H, W). Raises UsageError DK083 for sides that the factor does not divide."""
        require_multiples(x.shape[-2:], self.factor)
        return self.halves.encode(x)


class KLVAE(Autoencoder):
    """An autoencoder whose codes have a normal posterior, for the loss `kl`.

    channels     channels of z
    factor       pixels of x, along each side, for one position of z
    width        channels inside the networks
    blocks       residual blocks of each half, or of each level with `multipliers`
    multipliers  channels of each level, as multiples of `width`, of the convolutional autoencoder of latent diffusion;
                 without them (default) the networks work on patches of x, which is quick on a CPU
    attention    sides of the maps of x that are followed by attention, with `multipliers`: the side of x, halved 0, 1,
                 ... times

    Training encodes samples of the posterior; `encode` without noise is its mean.
    Source: Kingma & Welling 2014 (arXiv:1312.6114); with multipliers, Rombach et al. 2022 (arXiv:2112.10752), appendix
    G. Differs: patches, whose linear path starts as their principal components; posteriors start near std 0.05, not 1.
    """

    law_base = {"width": 8}  # noqa: RUF012 - read only
    law_options = ({"multipliers": (1, 2, 2), "attention": (4,)},)

    def __init__(
        self,
        data: Data,
        factor: Count = 4,
        channels: Count = 4,
        width: Count = 64,
        blocks: Count = 1,
        multipliers: tuple[Count, ...] = (),
        attention: tuple[Count, ...] = (),
    ) -> None:
        super().__init__(data.spec, 2 * channels, channels, factor, width, blocks, multipliers, attention)

    def posterior_of(self, output: Tensor) -> Posterior:
        mean, log_variance = output.chunk(2, dim=1)
        return Posterior(mean, (0.5 * (log_variance + START_LOG_VARIANCE).clamp(*LOG_VARIANCE)).exp())

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Reconstruction:
        posterior = self.posterior(x)
        z = posterior.sample(noise)
        return Reconstruction(self.reconstruct(z), z, posterior, last_layer=self.last_layer)


class VQVAE(Autoencoder):
    """An autoencoder whose decoder takes the nearest of `codes` vectors at each position.

    codes       vectors of the codebook, which follow the mean of what is assigned to them
    commitment  weight of the squared distance of the encoder's output from its code
    decay       decay of the averages of the codebook, for each batch
    least       a code that is used less than this fraction of the mean becomes a random output of the encoder
    The other options are those of kl-vae.

    z is the output of the encoder; `decode` quantizes it first, so a diffusion works on continuous codes. The gradient
    of a code is passed to z unchanged, in training and in `decode`.
    Source: van den Oord et al. 2017 (arXiv:1711.00937), eq. 3 and appendix A.1; the codebook in the decoder: Rombach et
    al. 2022 (arXiv:2112.10752), sec. 3.1.
    """

    law_base = {"width": 8, "codes": 16}  # noqa: RUF012 - read only
    law_options = ({"multipliers": (1, 2, 2)}, {"decay": 0.05})

    def __init__(
        self,
        data: Data,
        factor: Count = 4,
        channels: Count = 3,
        width: Count = 64,
        blocks: Count = 1,
        multipliers: tuple[Count, ...] = (),
        attention: tuple[Count, ...] = (),
        codes: Annotated[int, Field(ge=2)] = 1024,
        commitment: Annotated[float, Field(ge=0)] = 0.25,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
        least: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ) -> None:
        super().__init__(data.spec, channels, channels, factor, width, blocks, multipliers, attention)
        self.commitment, self.quantizer = commitment, Quantizer(codes, channels, decay, least)

    @torch.no_grad()
    def fit(self, data: Data) -> str:
        """Start patches as kl-vae does, and the codes as outputs of the encoder; return a line about the start."""
        found, count = super().fit(data), len(self.quantizer.codes)
        batches = self._batches(data, min(MOST_ENCODED, count))
        vectors = torch.cat([_rows(self.encoder_output(batch)) for batch in batches])
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
        self.quantizer.restart(vectors[order[:count]], torch.arange(count))
        return found

    def posterior_of(self, output: Tensor) -> Posterior:
        return Posterior(output)

    def decoder_input(self, z: Tensor) -> Tensor:
        """Return the codes nearest to z, with the gradient to them passed to z unchanged."""
        return _passed(z, self._quantized(z, self.quantizer.nearest(_rows(z))))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Encode, quantize and decode a batch; in training mode the codebook learns, with `noise` to choose dead codes.

        Args:
            x: Examples: (B, C, H, W).
            noise: Standard normal numbers, shaped like z; without them the codebook does not learn.

        Returns:
            The reconstruction, with the commitment loss, and for the log the perplexity of the codebook and its usage.
        """
        z = self.encoder_output(x)
        chosen = self.quantizer.nearest(_rows(z))
        quantized = self._quantized(z, chosen)
        distance = (z - quantized.detach()).square().flatten(1).mean(1)
        if self.training and noise is not None:
            self.quantizer.learn(_rows(z.detach()), chosen, _rows(noise)[:, 0])
        terms = {"commitment": self.commitment * distance}
        logged = {"perplexity": self.quantizer.perplexity(), "usage": self.quantizer.usage()}
        x = self.halves.decode(_passed(z, quantized))
        return Reconstruction(x, z, Posterior(z), terms, self.last_layer, logged)

    def _quantized(self, z: Tensor, chosen: Tensor) -> Tensor:
        codes = self.quantizer.codes[chosen].to(z.dtype)
        return codes.view(len(z), *z.shape[2:], z.shape[1]).movedim(-1, 1)


def _passed(z: Tensor, quantized: Tensor) -> Tensor:
    """Return the codes, with the gradient to them passed to z unchanged."""
    return z + (quantized - z).detach() if z.requires_grad else quantized


def _rows(z: Tensor) -> Tensor:
    """Return the vectors of all positions: (B, C, H, W) to (B H W, C)."""
    return z.movedim(1, -1).flatten(0, -2)
