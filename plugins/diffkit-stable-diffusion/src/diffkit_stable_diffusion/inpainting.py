"""The condition of inpainting models with 9 channels: a mask, and the latents of the picture outside the mask."""

from __future__ import annotations

from pathlib import Path

import torch
from diffkit_diffusers.data import ShapeOnly
from torch import Tensor
from torch.nn import functional

from diffkit import Codec, Conditioner, ConditionSpec, Data, Identity

FILLED = 128
"""Values of the mask from here on are filled by the model."""


class Inpainting(Conditioner):
    """Channels beside x of an inpainting model: the mask, 1 where the model fills in, and the latents of the rest.

    The raw condition is a picture with the mask as its last channel, (C + 1, H, W) uint8. Masked pixels are grey, 0 in
    the model's range; the mask takes the nearest value at the size of the latents. The latents are the mean of the
    codec. The null is an empty picture that is masked everywhere.

    Raises ValueError if the condition is not such a picture.
    Source: Rombach et al. 2022 (arXiv:2112.10752), sec. 4.5, code. Differs: their code draws the latents of the picture
    from the posterior of the codec.
    """

    concat = inpaints = True

    def __init__(self, condition: ConditionSpec, data: Data, codec: Codec | None = None) -> None:
        super().__init__()
        spec, self.condition = data.spec, condition
        wanted = (spec.channels + 1, *spec.size)
        if condition.dtype != "uint8" or condition.shape != wanted or len(spec.size) != 2:
            raise ValueError(
                f"inpainting requires a condition of dtype uint8 and shape {wanted}, a picture and its mask, not "
                f"{condition.shape}"
            )
        self._codec: tuple[Codec, ...] = (codec or Identity(),)  # in a tuple: the recipe owns and saves its weights
        self._latents = self._codec[0].spec(spec).shape

    @staticmethod
    def law_example(folder: Path) -> Inpainting:
        """Return an instance on which the laws are tested, without a codec."""
        return Inpainting(ConditionSpec((4, 8, 8), "uint8"), ShapeOnly(3, (8, 8)))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._latents[0] + 1, *self._latents[1:])

    def forward(self, raw: Tensor) -> Tensor:
        mask = (raw[:, -1:] >= FILLED).float()
        picture = (raw[:, :-1].float() / 127.5 - 1.0) * (1.0 - mask)
        with torch.no_grad():
            latents = self._codec[0].encode(picture.to(self._device))
        beside = functional.interpolate(mask, latents.shape[2:])
        return torch.cat([beside.to(latents.device), latents], 1)  # a codec may compute on another device

    def null(self) -> Tensor:
        return self.forward(torch.full((1, *self.condition.shape), 255, dtype=torch.uint8, device=self._device))[0]

    @property
    def _device(self) -> torch.device:
        codec = self._codec[0]
        weights = codec.parameters() if isinstance(codec, torch.nn.Module) else iter(())
        return next(weights, torch.zeros(())).device
