"""Fit: whether the options of a network go with each other and with the data, said before anything is built."""

from __future__ import annotations

from typing import Any, get_args

from diffkit.errors import RecipeError


def misfit(message: str, *, choices: tuple[object, ...] = (), fix: str | None = None) -> RecipeError:
    """The error for options that do not fit."""
    return RecipeError(message, code="DK140", choices=[str(choice) for choice in choices], fix=fix)


def check_choices(**options: tuple[str, Any]) -> None:
    """Each option is (value, Literal type); a library user's typo is caught here, a recipe's by its schema."""
    for option, (value, literal) in options.items():
        if value not in get_args(literal):
            raise misfit(f'unknown {option} "{value}"', choices=get_args(literal))


def resolutions(size: tuple[int, ...], levels: int) -> tuple[int, ...]:
    """The larger side of the map at each level, each half of the one before: ((32, 32), 3) -> (32, 16, 8)."""
    if len(size) != 2:
        raise misfit(
            f"network unet is for images; the data has {len(size)} spatial dimensions {size}",
            fix="use network mlp for vectors" if not size else None,
        )
    for side in size:
        if side % 2 ** (levels - 1):
            fitting = next(k for k in range(levels - 1, -1, -1) if side % 2**k == 0)
            raise misfit(
                f"network unet halves the map {levels - 1} times, which {side} does not allow (size {size})",
                fix=f"at most {fitting + 1} multipliers, or data padded to a multiple of {2 ** (levels - 1)}",
            )
    return tuple(max(size) >> level for level in range(levels))


def check_attention(attention: tuple[int, ...], sizes: tuple[int, ...], default: tuple[int, ...]) -> None:
    """Attention where no map is of that size would do nothing; only the default may ask for it."""
    missing = [size for size in attention if size not in sizes]
    if missing and attention != default:
        raise misfit(f"network unet has no map of size {missing[0]} to attend to", choices=sizes)


def check_heads(attends: bool, heads: int, head_channels: int | None) -> None:
    """Heads without attention would do nothing; two ways of counting them contradict each other."""
    if heads != 1 and head_channels is not None:
        raise misfit("heads and head_channels contradict each other", fix="give one of them")
    if not attends and (heads != 1 or head_channels is not None):
        raise misfit("heads are given, but this network attends nowhere", fix="leave them out, or give attention")


def group_count(channels: int, groups: int | None) -> int:
    """`groups` if it divides the channels; None: the most groups, at most 32, of at least four channels each."""
    if groups is None:
        return next(k for k in range(max(1, min(32, channels // 4)), 0, -1) if channels % k == 0)
    if channels % groups:
        raise misfit(
            f"{groups} groups do not divide the {channels} channels of a layer",
            fix="leave groups out, or let it divide channels",
        )
    return groups


def head_count(channels: int, heads: int, head_channels: int | None) -> int:
    """`heads`, or as many as there are of `head_channels` each."""
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
