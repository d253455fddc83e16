"""Presets: `sample.preset: NAME` runs a sampler with the grid and the conventions that another library has for it.

A sampler class lists its presets in `Sampler.presets`. A preset fills the keys of `sample` that the recipe does not
state. If `--set` states the preset, only what `--set` states beside it counts as stated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DiffkitError, Mark, RecipeError
from ..host import registry
from ..sampler import Sampler
from .load import FLAG
from .signature import section_parameters
from .spec import Sample
from .yaml import Node

USUAL: Mapping[str, Any] = {"allow_mismatch": True, "start_scale": "sigma", "network_time": "exact"}
"""Keys of `sample` under every preset, so that those of another sampler do not stay."""
OURS = ("sample.grid=trailing", "sample.start_scale=sigma", "sample.network_time=exact")
"""What a recipe without preset has by default."""


def preset_of(sampler: type[Sampler[Any]], preset: str, grid: str | None = None) -> Mapping[str, Any] | None:
    """Return the keys of `sample` that a preset sets for a sampler.

    Args:
        sampler: The class of the sampler.
        preset: The name of the preset.
        grid: The name of the grid that is stated; None: the usual one of the preset.

    Returns:
        Keys and plain values; None if the sampler lacks the preset. For a grid that the preset does not have, the other
        keys are those of the usual one.
    """
    found = [keys for library, keys in _presets(sampler) if library == preset]
    if not found:
        return None
    other = {**found[0], "grid": {"name": grid}}
    return {**USUAL, **next((one for one in found if grid in (None, one["grid"]["name"])), other)}


def _presets(sampler: type[Sampler[Any]]) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    found: tuple[tuple[str, Mapping[str, Any]], ...] = getattr(sampler, "presets", ())
    return found


def with_preset(root: Node) -> Node:
    """Return the tree of a recipe whose preset has filled `sample`; the same tree without a preset.

    Raises:
        RecipeError: The sampler does not have the preset (DK129).
    """
    section, preset = root.at("sample"), root.at("sample.preset")
    if section is None or not isinstance(section.value, dict) or preset is None or not isinstance(preset.value, str):
        return root
    stated = {key: node for key, node in section.value.items() if _is_stated(node, preset)}
    sampler, grid = section.value.get("sampler"), stated.get("grid")
    name = _name(sampler) or next(p.default for p in section_parameters(Sample) if p.name == "sampler")
    try:
        cls: type[Sampler[Any]] = registry().find("sampler", name).load()
    except DiffkitError:
        return root  # the fault is reported at the sampler
    filled = preset_of(cls, preset.value, _name(grid))
    if filled is None:
        message = f"sampler {name} has no preset {preset.value}"
        fix = "state sample.grid and sample.start_scale in place of the preset"
        presets = sorted({library for library, _ in _presets(cls)}) or "none"
        raise RecipeError(message, code="DK129", where=preset.mark, choices=presets, fix=fix)
    entries = {key: node for key, node in section.value.items() if key in stated or key not in filled}
    for key, value in filled.items():
        written = section.value.get(key) if key == "sampler" else stated.get(key)
        entries[key] = _filled(written, value, preset)
    return Node({**_entries(root), "sample": Node(entries, section.mark, section.key)}, root.mark, root.key)


def of_preset(recipe: Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, ...]:
    """Return overrides that keep `sample.preset` consistent in a whole recipe, which states every key.

    With another sampler the preset is applied again; `sample.preset=null` gives the defaults of a recipe.

    Args:
        recipe: The whole recipe as plain values.
        overrides: Texts `path=value`.

    Returns:
        The overrides: without a preset that the recipe has for the same sampler, or with that for the other sampler.
    """
    section = recipe.get("sample")
    own = section.get("preset") if isinstance(section, Mapping) else None
    changed = {path.strip(): value.strip() for path, _, value in (text.partition("=") for text in overrides)}
    if own is not None and changed.get("sample.preset") == "null":
        return (*OURS, *overrides)
    if own is None or changed.get("sample.preset", own) != own:
        return tuple(overrides)
    kept = [text for text in overrides if text.partition("=")[0].strip() != "sample.preset"]
    return (*kept, f"sample.preset={own}") if "sample.sampler" in changed else tuple(kept)


def _is_stated(node: Node, preset: Node) -> bool:
    """Return whether a value counts as stated beside the preset."""
    return node.value is not None and (preset.mark.file != FLAG or _is_flagged(node))


def _is_flagged(node: Node) -> bool:
    """Return whether `--set` states the value, or a part of it."""
    below = node.value.values() if isinstance(node.value, dict) else ()
    return node.mark.file == FLAG or any(map(_is_flagged, below))


def _filled(written: Node | None, value: Any, preset: Node) -> Node:
    """Return what is written, with the options of a component that it does not state."""
    if written is None or written.value is None:
        return _node(value, preset.label)
    if not isinstance(value, Mapping):
        return written
    kept = {"name", *(key for key, node in _entries(written).items() if key not in value or _is_stated(node, preset))}
    own = {key: node for key, node in _entries(written).items() if key in kept}
    added = {key: _node(one, preset.label) for key, one in value.items() if key not in own}
    return Node(own | added, written.mark, written.key)


def _entries(node: Node) -> dict[str, Node]:
    return node.entries("name") or {}


def _name(node: Node | None) -> str | None:
    name = None if node is None else _entries(node).get("name")
    return name.value if name is not None and isinstance(name.value, str) else None


def _node(value: Any, mark: Mark) -> Node:
    """Return plain values as a tree whose place is that of the preset."""
    if isinstance(value, Mapping):
        return Node({key: _node(one, mark) for key, one in value.items()}, mark, mark)
    return Node(value, mark, mark)
