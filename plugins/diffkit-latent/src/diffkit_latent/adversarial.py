"""The adversarial loss: a discriminator of patches that is trained beside the codec."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from diffkit import Data, Reconstruction, ReconstructionLoss

from .convolutional import norm
from .losses import Weight
from .ranks import mean_of_ranks

MOST_BALANCE = 1e4
"""The largest factor that balances the gradients."""
TINY = 1e-4
LEAST_MAP = 3
"""Smallest side of a map that the two convolutions of stride 1 at the end of a discriminator accept."""


class Critic(nn.Sequential):
    """A discriminator with one output for each of many overlapping patches: (B, C, H, W) to (B, 1, h, w).

    Source: Isola et al. 2017 (arXiv:1611.07004), appendix 6.1.2. Differs: group normalization in place of batch
    normalization, so that the output for an image does not depend on the batch.

    Args:
        channels: Channels of x.
        width: Channels of the first layer; they double up to 8 times as many.
        layers: Layers of stride 2; with 3 the receptive field is 70 x 70 pixels.
    """

    def __init__(self, channels: int, width: int, layers: int) -> None:
        found: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        before = width
        for layer in range(1, layers + 1):
            after = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            found += [nn.Conv2d(before, after, 4, stride, 1, bias=False), norm(after), nn.LeakyReLU(0.2)]
            before = after
        super().__init__(*found, nn.Conv2d(before, 1, 4, 1, 1))


class Adversarial(nn.Module, ReconstructionLoss):
    """The adversarial loss: minus the mean output of a discriminator for a reconstruction, times `weight`.

    The discriminator of `layers` and `width` learns by the hinge loss, by an optimizer of its own. Both begin after
    `start` steps, when reconstructions are good. With `adaptive: true` the loss is also multiplied by the norm of the
    gradient of the mean absolute error divided by that of this loss, both to the last layer of the decoder; several
    processes use the norms of their mean gradients.
    Source: Esser et al. 2021 (arXiv:2012.09841), eq. 6 and 7; hinge: Lim & Ye 2017 (arXiv:1705.02894).
    Differs: the gradient of the perceptual loss is not part of the balance.
    Raises ValueError for data that is not images, or too small for `layers`.
    """

    critic: Critic
    weight: float
    law_base = {"layers": 1, "width": 8}  # noqa: RUF012 - read only
    law_options = ({"start": 2},)

    def __init__(
        self,
        data: Data,
        weight: Weight = 0.5,
        start: Annotated[int, Field(ge=0)] = 0,
        adaptive: bool = False,
        layers: Annotated[int, Field(ge=1)] = 3,
        width: Annotated[int, Field(ge=1)] = 64,
    ) -> None:
        super().__init__()
        size = data.spec.size
        if len(size) != 2:
            raise ValueError(f"the discriminator takes images, but the data has shape {data.spec.shape}")
        if min(size) < 2 * LEAST_MAP:
            raise ValueError(f"the discriminator takes images of at least 6 x 6 pixels, got {size[0]} x {size[1]}")
        if min(size) < LEAST_MAP * 2**layers:
            most = max(count for count in range(1, layers) if min(size) >= LEAST_MAP * 2**count)
            raise ValueError(f"layers must be at most {most} for images of {size[0]} x {size[1]} pixels, got {layers}")
        self.weight, self.start, self.adaptive = weight, start, adaptive
        self.critic = Critic(data.spec.channels, width, layers)

    def __call__(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        if step < self.start:
            return x.new_zeros(len(x))
        fixed = {name: one.detach() for name, one in self.critic.named_parameters()}
        loss: Tensor = -functional_call(self.critic, fixed, out.x).flatten(1).mean(1)
        return self.weight * self._balance(out, x, loss) * loss

    def _balance(self, out: Reconstruction, x: Tensor, loss: Tensor) -> Tensor | float:
        """Return the ratio of the gradients of the mean absolute error and of this loss; 1 without a last layer."""
        if not self.adaptive or out.last_layer is None or not out.x.requires_grad:
            return 1.0
        errors = (out.x - x).abs().mean(), loss.mean()
        gradients = [torch.autograd.grad(one, out.last_layer, retain_graph=True)[0] for one in errors]
        of_error, own = (one.norm() for one in mean_of_ranks(torch.stack(gradients)))
        balance: Tensor = of_error / (own + TINY)
        return balance.clamp(max=MOST_BALANCE).detach()

    def critic_loss(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        """Compute the hinge loss of the discriminator, half of max(0, 1 - D(x)) + max(0, 1 + D(out.x)); 0,
        without gradient, before `start`.

        Args:
            out: The output of the codec for x; its gradient is not used.
            x: Examples: (B, C, H, W).
            step: The number of steps before this one.

        Returns:
            The losses: (B,).
        """
        if step < self.start:
            return x.new_zeros(len(x))
        real, made = self.critic(torch.cat([x, out.x.detach()])).flatten(1).chunk(2)
        loss: Tensor = 0.5 * (functional.relu(1 - real).mean(1) + functional.relu(1 + made).mean(1))
        return loss
