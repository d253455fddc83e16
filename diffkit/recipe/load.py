"""Read recipes from files, built-in names, texts and mappings, apply overrides, and fill presets; imports no torch.

An override `--set path=value` replaces a value of the tree, or adds it. `sample.preset: NAME` runs a sampler with the
grid and the conventions that another library has for it. A sampler class lists its presets in `Sampler.presets`. A
preset fills the keys of `sample` that the recipe does not state. If `--set` states the preset, only what `--set` states
beside it counts as stated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, DiffkitError, Mark, RecipeError
from ..host import registry
from ..host.unknown_names import recipe_holder
from .errors import did_you_mean, nearest, quote
from .signature import section_parameters
from .spec import Sample
from .yaml import MAX_BYTES, MAX_DEPTH, Node, parse

if TYPE_CHECKING:
    from ..sampler import Sampler

Source = str | os.PathLike[str] | Mapping[str, Any]
FLAG = "--set"
EVERY_PRESET: Mapping[str, Any] = {"allow_mismatch": True, "start_scale": "sigma", "network_time": "exact"}
"""Keys of `sample` under every preset, so that those of another sampler do not stay."""
NO_PRESET = ("sample.grid=trailing", "sample.start_scale=sigma", "sample.network_time=exact")
"""What a recipe without preset has by default."""


def read(source: Source, overrides: Iterable[str] = ()) -> tuple[str, Node]:
    """Return the text as given, and its tree under the overrides; no component is imported."""
    text, name = _text(source)
    root = parse(text, name)
    if not isinstance(root.value, dict) and root.value is not None:
        raise RecipeError("a recipe must be a mapping", code="DK101", where=root.mark, fix="write key: value lines")
    return text, override(root if root.value is not None else Node({}, root.mark), overrides)


def raise_all(found: Iterable[DiffkitError], what: str) -> None:
    """Raise one RecipeError with all faults in the order of their places, if there are any."""
    faults = sorted(found, key=lambda e: (e.where.file, e.where.line, e.where.column) if e.where else ("", 0, 0))
    if not faults:
        return
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    error = RecipeError(f"{what}: {count}; the first: {faults[0]}", errors=faults)
    error.exit_code = faults[0].exit_code if len({fault.exit_code for fault in faults}) == 1 else RecipeError.exit_code
    raise error


def as_text(value: Mapping[str, Any]) -> str:
    """Write a mapping of plain values as JSON, which is valid YAML. Raises RecipeError if a value is not plain."""

    def plain(other: object) -> object:
        if isinstance(other, os.PathLike):
            return os.fspath(other)
        if isinstance(other, Mapping):
            return dict(other)
        raise TypeError(f"a recipe consists of numbers, texts, lists and mappings, not of {type(other).__name__}")

    try:
        return json.dumps(dict(value), indent=1, ensure_ascii=False, allow_nan=False, default=plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"this mapping cannot be a recipe: {error}", code="DK106") from error


def _text(source: Source) -> tuple[str, str]:
    if isinstance(source, Mapping):
        return as_text(source), "<mapping>"
    if not isinstance(source, str | os.PathLike):
        fix = "pass the name of a recipe, a file, a text or a mapping"
        raise ArgumentError.of("argument 1 (`source`)", "a recipe", source, fix)
    if isinstance(source, str) and "\n" in source:
        return source, "<text>"
    path = Path(source)
    try:
        exists = path.is_file()
    except OSError as error:
        raise _unreadable(path, error) from error
    if exists:
        return _file(path), str(source)
    built_in = registry().recipes()
    if isinstance(source, str) and source in built_in:
        return _file(built_in[source]), built_in[source].name
    raise _not_found(str(source), path, built_in)


def _file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecipeError(f"{path} is larger than {MAX_BYTES >> 20} MiB", code="DK101", where=Mark(str(path), 1))
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        message = f"{path} is not UTF-8 text"
        raise RecipeError(message, code="DK101", where=Mark(str(path), line), fix="save the file as UTF-8") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> RecipeError:
    fix = "check the path and its permissions"
    return RecipeError(f"{quote(str(path))} cannot be read: {error.strerror or error}", code="DK109", fix=fix)


def _not_found(source: str, path: Path, built_in: Mapping[str, Path]) -> RecipeError:
    name = path.name.removesuffix(".yaml")
    if package := recipe_holder(name):
        message = f'recipe "{name}" comes with the package {package}, which is not installed or not loaded'
        fix = f"pip install {package}; if it is installed, diffkit plugins --why {package.removeprefix('diffkit-')}"
        return RecipeError(message, code="DK109", fix=fix)
    message = f"there is no recipe {quote(source)}: neither a file nor a built-in name"
    hint, fix = (
        did_you_mean(nearest(name, built_in)),
        "list recipes: diffkit ls recipes; copy a built-in recipe to a file: diffkit cp NAME",
    )
    return RecipeError(message, code="DK109", hint=hint, choices=sorted(built_in), fix=fix)


def override(root: Node, overrides: Iterable[str]) -> Node:
    """Apply each `path=value` in turn. Raises RecipeError that lists every override that cannot be read."""
    faults: list[RecipeError] = []
    for text in overrides:
        try:
            path, value = _read(text)
            root = _replace(root, path.split("."), 0, value, text)
        except RecipeError as error:
            faults += [e for e in error.errors if isinstance(e, RecipeError)] or [error]
    if faults:
        raise RecipeError(f"{FLAG} cannot be applied", errors=faults)
    return root


def _read(text: str) -> tuple[str, Node]:
    """Split at the first "=": the path, and the value read as one YAML scalar, flow list or flow mapping."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise _fault(f"{FLAG} takes path=value", text, 1, len(text), f"{FLAG} train.steps=100")
    if path.count(".") >= MAX_DEPTH:
        raise _fault(f"a recipe is at most {MAX_DEPTH} levels deep", text, 1, len(path), None)
    start = text.index("=") + 1
    node = parse(value, FLAG, prefix=f"{FLAG} {text[:start]}")
    stripped = value.strip()
    block = isinstance(node.value, dict | list) and stripped[:1] not in ("{", "[")
    if "\n" in stripped or block:
        message = "the value must be a scalar or a flow list or mapping"
        raise _fault(message, text, start + 1, len(value), "{a: 1, b: 2}")
    if _is_cut(node, stripped):
        raise _fault('"#" starts a comment in YAML', text, start + 1, len(value), "put the value in quotes")
    return path, node.under(path)


def _is_cut(node: Node, written: str) -> bool:
    """Return whether a comment cut off a part of an unquoted value."""
    if isinstance(node.value, str):
        return written[:1] not in ("'", '"') and node.value != written
    return not isinstance(node.value, dict | list) and "#" in written


def _replace(node: Node, parts: list[str], done: int, value: Node, text: str) -> Node:
    """Return the same tree with `value` at the path `parts`; the first `done` parts lead to `node`. Adds missing
    mappings.
    """
    if done == len(parts):
        return Node(value.value, value.mark, _key(text, parts))
    part = parts[done]
    if isinstance(node.value, list):
        items = list(node.value)
        if not (part.isdecimal() and int(part) < len(items)):
            raise _fault(f"there is no item {part} in a list of {len(items)}", text, 1, text.index("="), None)
        items[int(part)] = _replace(items[int(part)], parts, done + 1, value, text)
        return Node(items, node.mark, node.key)
    if isinstance(node.value, dict):
        entries = dict(node.value)
    elif isinstance(node.value, str):
        entries = {"name": Node(node.value, node.mark, node.mark)}
    elif node.value is None:
        entries = {}
    else:
        at = node.mark.path
        raise _fault(f"{at} is {node.value!r}, which has no entries", text, 1, text.index("="), f"{FLAG} {at}={{...}}")
    below = entries.get(part) or Node(None, value.mark, _key(text, parts[: done + 1]))
    entries[part] = _replace(below, parts, done + 1, value, text)
    return Node(entries, node.mark, node.key)


def _key(text: str, parts: list[str]) -> Mark:
    """Return the place of the last of `parts` within the path."""
    start = len(text) - len(text.lstrip()) + sum(len(part) + 1 for part in parts[:-1])
    return Mark(FLAG, 1, len(FLAG) + 2 + start, ".".join(parts), f"{FLAG} {text}", len(parts[-1]))


def _fault(message: str, text: str, start: int, width: int, fix: str | None) -> RecipeError:
    shown = f"{FLAG} {text}".splitlines()[0]
    mark = Mark(FLAG, 1, len(FLAG) + 1 + start, text.partition("=")[0].strip(), shown, max(1, width))
    return RecipeError(message, code="DK103", where=mark, fix=fix)


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
    return {**EVERY_PRESET, **next((one for one in found if grid in (None, one["grid"]["name"])), other)}


def kept_grid(
    grid: Mapping[str, Any], preset: str, own: type[Sampler[Any]], other: type[Sampler[Any]]
) -> Mapping[str, Any]:
    """Return what another sampler keeps of the grid of a recipe under a preset.

    A grid that is not the usual one of its sampler was chosen, as were options with other values than those of the
    preset; another sampler keeps them where its own preset has this grid and these options.

    Args:
        grid: Name and options of the grid of the recipe.
        preset: The name of the preset.
        own: The class of the sampler of the recipe.
        other: The class of the other sampler.

    Returns:
        Name and options; empty for the usual grid of the other sampler.
    """
    before, after = (
        {keys["grid"]["name"]: keys["grid"] for library, keys in _presets(one) if library == preset}
        for one in (own, other)
    )
    name = grid.get("name")
    usual = name == next(iter(before), None) and name != next(iter(after), None)
    if name not in before or name not in after or usual:
        return {}
    shared = before[name].keys() & after[name].keys() & grid.keys()
    return {"name": name, **{key: grid[key] for key in sorted(shared) if grid[key] != before[name][key]}}


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
    name = _component_name(sampler) or next(p.default for p in section_parameters(Sample) if p.name == "sampler")
    try:
        cls: type[Sampler[Any]] = registry().find("sampler", name).load()
    except DiffkitError:
        return root  # the fault is reported at the sampler
    filled = preset_of(cls, preset.value, _component_name(grid))
    if filled is None:
        message = f"sampler {name} has no preset {preset.value}"
        fix = "state sample.grid and sample.start_scale in place of the preset"
        presets = sorted({library for library, _ in _presets(cls)}) or "none"
        raise RecipeError(message, code="DK129", where=preset.mark, choices=presets, fix=fix)
    entries = {key: node for key, node in section.value.items() if key in stated or key not in filled}
    for key, value in filled.items():
        written = section.value.get(key) if key == "sampler" else stated.get(key)
        entries[key] = _filled(written, value, preset)
    changed = {"sample": Node(entries, section.mark, section.key), **_evaluated(root, preset, cls, entries["grid"])}
    return Node({**_entries(root), **changed}, root.mark, root.key)


def _evaluated(root: Node, preset: Node, own: type[Sampler[Any]], grid: Node) -> dict[str, Node]:
    """Return the section `evaluate` with the grid of the preset for its sampler, if that is another one than `own` and
    no grid is stated; a sampler without the preset has the usual grid of recipes.
    """
    section = root.at("evaluate")
    if section is None or not isinstance(section.value, dict) or "metrics" not in section.value:
        return {}
    named, stated = (_component_name(section.value.get(key)) for key in ("sampler", "grid"))
    for other in _samplers(named) if named is not None and stated is None else ():
        if other is not own:
            kept = kept_grid(_plain(grid), str(preset.value), own, other)
            filled = preset_of(other, str(preset.value), kept.get("name")) or {"grid": {"name": "trailing"}}
            value = _node({**filled["grid"], **kept}, preset.label)
            return {"evaluate": Node({**section.value, "grid": value}, section.mark, section.key)}
    return {}


def _plain(component: Node) -> dict[str, Any]:
    """Return the name and the options of a component."""
    return {key: node.plain() for key, node in _entries(component).items()}


def of_preset(recipe: Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, ...]:
    """Return overrides that keep `sample.preset` consistent in a whole recipe, which states every key.

    With the preset or a grid stated beside a sampler, the preset is applied again. Without these, the sampler of the
    recipe keeps what is not stated; for another one the preset is applied again, except for a grid that was chosen, see
    `kept_grid`. `sample.preset=null` gives the defaults of a recipe.

    Args:
        recipe: The whole recipe as plain values.
        overrides: Texts `path=value`.

    Returns:
        The overrides: without a preset that the recipe has for the same sampler, or with that for the other sampler.
    """
    section = recipe.get("sample")
    own = section.get("preset") if isinstance(section, Mapping) else None
    changed = {path.strip(): value.strip() for path, _, value in (text.partition("=") for text in overrides)}
    if not isinstance(section, Mapping) or own is None or changed.get("sample.preset", own) != own:
        return (*NO_PRESET, *overrides) if own is not None and changed["sample.preset"] == "null" else tuple(overrides)
    kept = [text for text in overrides if _path(text) != "sample.preset"]
    if "sample.sampler" not in changed:
        return tuple(kept)
    if "sample.preset" in changed or "sample.grid" in changed:
        return (*kept, f"sample.preset={own}")
    sampler, stated = section.get("sampler") or {}, parse(changed["sample.sampler"], FLAG)
    name = _component_name(stated)
    if name == sampler.get("name"):
        whole = json.dumps({**sampler, **_plain(stated)})
        return tuple(f"sample.sampler={whole}" if _path(text) == "sample.sampler" else text for text in kept)
    if classes := _samplers(sampler.get("name"), name):
        grid = kept_grid(section.get("grid") or {}, own, *classes)
        kept = [f"sample.grid={json.dumps(grid)}", *kept] if grid else kept
    return (*kept, f"sample.preset={own}")


def _path(override: str) -> str:
    return override.partition("=")[0].strip()


def _samplers(*names: str | None) -> tuple[type[Sampler[Any]], ...]:
    """Return the classes of samplers; none if a name is unknown, which is reported where the recipe is read."""
    try:
        return tuple(registry().find("sampler", str(name)).load() for name in names)
    except DiffkitError:
        return ()


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


def _component_name(node: Node | None) -> str | None:
    name = None if node is None else _entries(node).get("name")
    return name.value if name is not None and isinstance(name.value, str) else None


def _node(value: Any, mark: Mark) -> Node:
    """Return plain values as a tree whose place is that of the preset."""
    if isinstance(value, Mapping):
        return Node({key: _node(one, mark) for key, one in value.items()}, mark, mark)
    return Node(value, mark, mark)
