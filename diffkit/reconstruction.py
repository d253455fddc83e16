"""Losses of reconstructions: what the training of a codec minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from .codec import Reconstruction
from .interface import attribute


class ReconstructionLoss(ABC):
    """Base of the losses of a codec. Implement `__call__`; the training minimises the sum of all losses of a recipe.

    A loss with modules is an `nn.Module` itself: its trained parameters are trained with those of the codec, its frozen
    modules move to the device. A loss with a discriminator has it as `critic`. An optimizer of its own updates the
    critic by `critic_loss` in the same step, after that of the codec.
    """

    @attribute
    def weight(self) -> float:
        """The factor of the loss, an option of each loss that `__call__` multiplies by; default 1."""
        return 1.0

    @attribute
    def critic(self) -> nn.Module | None:
        """The discriminator, which `critic_loss` trains; default None."""
        return None

    @attribute
    def law_minimum(self) -> float | None:
        """The least value, reached if out.x is x and the posterior is N(0, 1); default None: laws test no minimum."""
        return None

    @abstractmethod
    def __call__(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        """Compute the loss of each example.

        Args:
            out: What the codec made of x.
            x: Examples: (B, C, *S).
            step: The number of steps before this one.

        Returns:
            The losses, times `weight`: (B,), each a function of its own example.
        """

    def critic_loss(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        """Compute the loss of the critic for each example.

        Args:
            out: The output of the codec for x, without gradient.
            x: Examples: (B, C, *S).
            step: The number of steps before this one.

        Returns:
            The losses: (B,); without gradient, such as zeros before a first step, the critic is left as it is.
        """
        raise NotImplementedError(f"{type(self).__name__} has a critic, but no critic_loss")
