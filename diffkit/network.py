"""Networks: the trained part of a model.

A network maps x: (B, C, *S) and c_noise: (B,) to (B, C', *S). It is independent of the schedule and of the meaning of
its output: `Model` scales its input, passes it the noise level as one number per example, and decodes its output. Any
`nn.Module` with `forward(x, c_noise, **cond)` can be used; `Network` adds what recipes and laws need.

A network takes the conditions that its `forward` names, beside `label`:

    text        (B, L, D), one vector for each token of a text
    text_mask   (B, L) bool, False for padding
    concat      (B, C', *S), which the network concatenates to x; x is scaled by c_in, concat is not
    any name    (B, D), one vector for each example
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

CONCAT, MASK = "concat", "_mask"
"""The argument of what is concatenated to x, and the end of the name of the mask of another argument."""


@dataclass(frozen=True)
class Shape:
    """The shape that a network is built for: channels in and out, spatial size, and conditions.

    in_channels      channels of x, without those of `concat`
    out_channels     channels of the output
    size             spatial size; empty for vectors
    classes          number K of classes, None without labels; labels are 0..K-1, and K is the null class (no label)
    conditions       shape per example of each further condition as the network receives it: (L, D) of `text`, (D,) of a
                     vector; a mask (L,) and `concat` are not listed
    extra_channels   channels of `concat`, which the network concatenates to x inside; 0: it receives none
    """

    in_channels: int
    out_channels: int
    size: tuple[int, ...] = ()
    classes: int | None = None
    conditions: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    extra_channels: int = 0


def conditions_of(network: nn.Module) -> frozenset[str] | None:
    """Return the names of the conditions that a network takes beside x and c_noise; None if it takes every name.

    A network with the attribute `inner` passes further ones to that.
    """
    parameters = list(inspect.signature(network.forward).parameters.values())[2:]
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    own = frozenset(one.name for one in parameters if one.kind not in variable)
    if all(one.kind is not one.VAR_KEYWORD for one in parameters):
        return own
    inner = getattr(network, "inner", None)
    passed = conditions_of(inner) if isinstance(inner, nn.Module) else None
    return None if passed is None else own | passed


class Network(nn.Module):
    """Base of networks in recipes. Set `integer_time` if c_noise must be a whole number (an embedding table)."""

    integer_time: bool = False
    examples_to_fit: int = 0
    """Training examples that `fit` is called with before a run starts; 0 does not call it."""

    def fit(self, x0: Tensor, label: Tensor | None = None) -> str:
        """Learn from prepared training examples before a run starts; return a line about the result for the user.

        What is learned lies in parameters or buffers, since a resumed run and a run that samples load it.

        Args:
            x0: What the diffusion sees, encoded and augmented: (N, C, *S), on the device of the network.
            label: Their classes, K for those that condition dropout replaced: (N,) long; None without classes.

        Returns:
            The line.
        """
        return ""

    @classmethod
    def inner_shape(cls, shape: Shape) -> Shape:
        """Return the shape for which a recipe builds the networks inside this one, which itself gets `shape`.

        Override it if this network concatenates inputs: `replace(shape, in_channels=2 * shape.in_channels)`.
        """
        return shape

    def block_modules(self) -> Iterable[nn.Module]:
        """Return the blocks by which weights are sharded and activations recomputed.

        A block is called as a module, and contains no other one. Default: the modules in each `nn.ModuleList`.
        """
        return [block for module in self.modules() if isinstance(module, nn.ModuleList) for block in module]

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Compute the output for x at the noise level c_noise; must not change its arguments in place.

        Name further conditions as keyword arguments with default None, which is their null:
        `forward(self, x, c_noise, label=None, *, text=None, text_mask=None, concat=None)`.

        Args:
            x: Scaled noisy data: (B, C, *S).
            c_noise: The noise level as one number per example: (B,) float32.
            label: Class per example: (B,) long, if the network is conditional; K is the null class.

        Returns:
            The output, whose meaning a `Parameterization` defines: (B, C', *S).
        """
