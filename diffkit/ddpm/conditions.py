"""What a network takes beside x, c_noise and label: vectors, a text, and channels that are concatenated to x."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.network import Shape

from .fit import misfit


def vector_widths(network: str, shape: Shape) -> dict[str, int]:
    """Return the width of each condition that is a vector (1 for a number), by name.

    Args:
        network: The name of the network, for the error.
        shape: The shape that it is built for.

    Returns:
        Numbers per example by the name of the condition; `text` is not among them.

    Raises:
        RecipeError: Another condition than `text` is not a vector, or `text` is not (L, D) (DK140).
    """
    for name, dimensions in shape.conditions.items():
        if (len(dimensions) != 2) if name == "text" else (len(dimensions) > 1):
            wanted = "(tokens, width)" if name == "text" else "(width,) or ()"
            raise misfit(
                f"network {network} takes the condition {name} of shape {wanted}, got {dimensions}",
                fix="choose another conditioner: text for a text, concat for a picture",
            )
    return {name: (*size, 1)[0] for name, size in shape.conditions.items() if name != "text"}


def text_width(shape: Shape) -> int | None:
    """Return the width of the tokens of the condition `text`; None without it."""
    return shape.conditions["text"][1] if "text" in shape.conditions else None


def with_concat(x: Tensor, concat: Tensor | None, channels: int) -> Tensor:
    """Concatenate channels to x; zeros by default.

    Args:
        x: (B, C, *S).
        concat: (B, C', *S), or None.
        channels: The number C' that the network was built for.

    Returns:
        (B, C + C', *S).

    Raises:
        UsageError: `concat` has another shape, or the network takes none (DK041).
    """
    if concat is None:
        return torch.cat([x, x.new_zeros(len(x), channels, *x.shape[2:])], 1) if channels else x
    if concat.shape != (len(x), channels, *x.shape[2:]):
        raise UsageError(
            f"`concat` must have the shape {(len(x), channels, *x.shape[2:])}, got {tuple(concat.shape)}",
            code="DK041",
            fix="pass as many channels as the network was built for (shape.extra_channels), of the size of x",
        )
    return torch.cat([x, concat.to(x.dtype)], 1)


def check_text(text: Tensor | None, mask: Tensor | None, width: int | None, rows: int) -> None:
    """Require that a text fits the network.

    Args:
        text: (B, L, D), or None.
        mask: (B, L) bool, or None.
        width: The width D that the network was built for; None if it takes no text.
        rows: The number B of examples.

    Raises:
        UsageError: The text or its mask does not fit (DK041).
    """
    if text is None and mask is None:
        return
    if width is None:
        message, fix = "this network was built without text, but one was given", "leave the text out"
    elif text is None:
        message, fix = "`text_mask` is given without `text`", "pass both"
    elif text.ndim != 3 or text.shape[0] != rows or text.shape[2] != width:
        message, fix = f"`text` must be ({rows}, L, {width}), got {tuple(text.shape)}", "encode it by its conditioner"
    elif mask is not None and (mask.shape != text.shape[:2] or mask.dtype != torch.bool):
        message = f"`text_mask` must be bool {tuple(text.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}"
        fix = "pass True for tokens to read"
    else:
        return
    raise UsageError(message, code="DK041", fix=fix)


def check_vectors(given: Mapping[str, Tensor], widths: Mapping[str, int], rows: int) -> None:
    """Require that vectors have names and widths that the network was built for.

    Args:
        given: (B, D) by name, or (B,) for one number.
        widths: The widths D by name.
        rows: The number B of examples.

    Raises:
        UsageError: A name or a shape does not fit (DK041).
    """
    for name, value in given.items():
        if name not in widths:
            raise UsageError(
                f"this network was built without the condition {name}",
                code="DK041",
                choices=", ".join(widths) or "none",
                fix="leave it out, or build the network for it (shape.conditions)",
            )
        if value.reshape(len(value), -1).shape != (rows, widths[name]):
            raise UsageError(
                f"`{name}` must be ({rows}, {widths[name]}), got {tuple(value.shape)}",
                code="DK041",
                fix="pass one vector for each example",
            )
