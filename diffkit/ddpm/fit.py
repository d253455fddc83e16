"""Checks that the options of a network fit each other and the data, before anything is built."""

from __future__ import annotations

from typing import Any, get_args

from diffkit.errors import RecipeError


def misfit(message: str, *, choices: tuple[object, ...] = (), fix: str | None = None) -> RecipeError:
    """Return the error DK140 for options that do not fit.

    Args:
        message: The options that do not fit.
        choices: Values that would fit.
        fix: The change to make.

    Returns:
        The error, to be raised by the caller.
    """
    return RecipeError(message, code="DK140", choices=[str(choice) for choice in choices], fix=fix)


def check_choices(**options: tuple[str, Any]) -> None:
    """Raise RecipeError if the value of an option is not in its Literal type; options: name=(value, Literal type)."""
    for option, (value, literal) in options.items():
        if value not in get_args(literal):
            raise misfit(f'unknown {option} "{value}"', choices=get_args(literal))


def resolutions(size: tuple[int, ...], levels: int, patch: int = 1) -> tuple[int, ...]:
    """Return the larger side of the map at each level of a U-Net, halved from level to level.

    Args:
        size: Sides of the data.
        levels: Number of levels.
        patch: Side of a patch, one position of the finest map.

    Returns:
        The sides: ((32, 32), 3) -> (32, 16, 8).

    Raises:
        RecipeError: The network takes no such data (DK140).
    """
    if not 1 <= len(size) <= 3:
        raise misfit(
            f"network unet takes series, images and volumes, but the data has {len(size)} spatial dimensions {size}",
            fix="use network mlp for vectors" if not size else None,
        )
    if any(side % patch for side in size):
        tiling = [k for k in range(1, min(size) + 1) if not any(side % k for side in size)]
        raise misfit(f"patches of side {patch} do not tile data of size {size}", choices=tuple(tiling))
    stride = patch * 2 ** (levels - 1)
    for side in size:
        if side % stride:
            fitting = next(k for k in range(levels - 1, -1, -1) if side % (patch * 2**k) == 0)
            raise misfit(
                f"network unet requires sides that are divisible by {stride}, got size {size}",
                fix=f"use at most {fitting + 1} multipliers, or pad the data to a multiple of {stride}",
            )
    return tuple(max(size) // patch >> level for level in range(levels))


def check_attention(attention: tuple[int, ...], sizes: tuple[int, ...], default: tuple[int, ...]) -> None:
    """Raise RecipeError if no map has a size of `attention`, unless it is the default.

    Args:
        attention: Sizes of the maps with attention.
        sizes: Sizes of the maps of the network.
        default: The default of the option.
    """
    missing = [size for size in attention if size not in sizes]
    if missing and attention != default:
        raise misfit(f"network unet has no map of size {missing[0]} for attention", choices=sizes)


def check_heads(attends: bool, heads: int, head_channels: int | None) -> None:
    """Raise RecipeError if heads are given twice, or without attention.

    Args:
        attends: Whether the network has attention at all.
        heads: Number of heads.
        head_channels: Channels of one head, in place of `heads`.
    """
    if heads != 1 and head_channels is not None:
        raise misfit("heads and head_channels contradict each other", fix="set only one of the two")
    if not attends and (heads != 1 or head_channels is not None):
        raise misfit("heads are given, but this network has no attention", fix="remove heads, or set attention")


def group_count(channels: int, groups: int | None) -> int:
    """Return `groups`, or for None the most groups, at most 32, with at least four channels each."""
    if groups is None:
        return next(k for k in range(max(1, min(32, channels // 4)), 0, -1) if channels % k == 0)
    if channels % groups:
        raise misfit(
            f"{groups} groups do not divide the {channels} channels of a layer",
            fix="leave groups out, or let it divide channels",
        )
    return groups


def head_count(channels: int, heads: int, head_channels: int | None) -> int:
    """Return the number of heads.

    Args:
        channels: Channels of the layer.
        heads: Number of heads.
        head_channels: Channels of one head, in place of `heads`.

    Returns:
        `heads`, or channels / head_channels.

    Raises:
        RecipeError: The heads do not divide the channels (DK140).
    """
    if head_channels is None:
        if channels % heads:
            raise misfit(
                f"{heads} heads do not divide the {channels} channels of an attention layer",
                fix="leave heads out, or let it divide channels",
            )
        return heads
    if channels % head_channels:
        raise misfit(
            f"heads of {head_channels} channels do not divide the {channels} of an attention layer",
            fix="choose head_channels that divide channels",
        )
    return channels // head_channels
