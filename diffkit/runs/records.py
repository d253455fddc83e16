"""What a run records of its data, of the source of its codec, and of the plugin files that it was made with.

A run keeps a copy of each plugin file and never loads it by itself. Opening a run requires that its records still
apply.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from ..codec import CodecRecord
from ..data import DataSpec
from ..errors import CheckpointError, DiffkitError, PluginError, UsageError, plain
from ..host import registry
from ..recipe.load import of_preset
from ..recipe.signature import Resolved, component_parameters
from ..recipe.spec import Recipe
from ..recipe.validate import load_recipe
from ..recipe.yaml import parse
from ..storage.atomic import read_bounded
from ..storage.run_directory import ENVIRONMENT, RunDirectory

DATA_FILE, CODEC_FILE = "data.json", "codec.json"
MAX_LENGTH = 1 << 20
PLUGIN_FOLDER, PLUGIN_FILES = "plugins", "files"
"""Where a run keeps copies of plugin files, and the key of environment.json with their digests."""
MAX_PLUGIN_BYTES = 4 << 20
OF_WEIGHTS = {"codec": "codec", "network": "network", "conditions": "conditioner"}
"""The sections of a recipe whose components have weights, and their kinds."""
_PLUGIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,250}\.py")


class DataRecord(BaseModel):
    """The content of data.json: the properties of the data that sampling depends on. `spec` is None in runs of earlier
    versions.
    """

    model_config = ConfigDict(frozen=True)

    spec: DataSpec | None = None

    @field_validator("spec")
    @classmethod
    def _require_possible(cls, spec: DataSpec | None) -> DataSpec | None:
        if spec is not None and not all(1 <= length <= MAX_LENGTH for length in (*spec.shape, spec.classes or 1)):
            raise ValueError(f"channels, sizes and classes must be 1 to {MAX_LENGTH}")
        return spec

    @classmethod
    def read(cls, directory: RunDirectory) -> DataRecord:
        """Return the record of a run. Raises CheckpointError if the file is damaged."""
        return directory.read_record(DATA_FILE, cls, "restore the file, or delete it if the data is in its place")

    def write(self, directory: RunDirectory) -> None:
        """Write data.json. Raises ResourceError if it cannot be written."""
        directory.write_json(DATA_FILE, self.model_dump(mode="json"))


class SourceRecord(BaseModel):
    """The content of codec.json: the source of the weights of the codec; `record` is None for a codec without one."""

    model_config = ConfigDict(frozen=True)

    record: CodecRecord | None = None

    @classmethod
    def read(cls, directory: RunDirectory) -> SourceRecord:
        """Return the record of a run. Raises CheckpointError if the file is damaged."""
        return directory.read_record(CODEC_FILE, cls, "restore the file")

    def require_same(self, present: CodecRecord | None) -> None:
        """Raise CheckpointError DK607 if the codec was another one when the run started."""
        if self.record is None or present is None or self.record == present:
            return
        then, now = ({"sha256": one.sha256, **one.options} for one in (self.record, present))
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        raise CheckpointError(
            "the source of the codec has changed since the run was started",
            code="DK607",
            fix="restore the source of the codec; to train on the new latents, pass another --out",
            notes=[f"{key}: {then.get(key)!s:.200} then, {now.get(key)!s:.200} now" for key in changed],
        )

    def write(self, directory: RunDirectory) -> None:
        """Write codec.json. Raises ResourceError if it cannot be written."""
        if self.record is not None:
            directory.write_json(CODEC_FILE, self.model_dump(mode="json"))


def read_plugin_files(recipe: Recipe) -> dict[str, bytes]:
    """Return the content of the plugin files that a recipe uses, by file name."""
    used = {name for component in recipe.components for name in _plugins(component)}
    paths = [Path(one.origin) for one in registry().plugins if one.name in used and one.is_file]
    return {path.name: read_bounded(path, MAX_PLUGIN_BYTES) for path in paths}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def keep_plugin_files(directory: RunDirectory, files: dict[str, bytes]) -> None:
    """Write copies into a run directory. Raises ResourceError if they cannot be written."""
    for name, content in files.items():
        directory.write_bytes(f"{PLUGIN_FOLDER}/{name}", content)


def require_plugin_files(directory: RunDirectory) -> None:
    """Require that the plugin files of a run are loaded, and warn if one has changed since.

    Raises:
        PluginError: DK207, a file is not loaded. No code of the run directory is executed.
    """
    recorded: object = {}
    with contextlib.suppress(CheckpointError):  # without this file, errors name the unknown components instead
        recorded = directory.read_json(ENVIRONMENT).get(PLUGIN_FILES)
    for name, digest in recorded.items() if isinstance(recorded, dict) else ():
        if not _PLUGIN_NAME.fullmatch(name):
            continue
        kept = directory.path / PLUGIN_FOLDER / name
        plugin = name.removesuffix(".py").replace("_", "-").strip("-").lower()
        loaded = next((one for one in registry().plugins if one.name == plugin and one.status == "ok"), None)
        if loaded is None:
            raise PluginError(
                f"{directory.path} was made with the plugin file {name}, which is not loaded",
                code="DK207",
                fix=f"pass the file: -P {name}; in Python: diffkit.host.load_file({name!r})",
                notes=[f"the run keeps a copy: {kept}; read it first, because it is code"],
            )
        if loaded.is_file and digests({name: read_bounded(Path(loaded.origin), MAX_PLUGIN_BYTES)})[name] != digest:
            message = f"{loaded.origin} has changed since {directory.path} was made; see {kept}"
            warnings.warn(plain(message), stacklevel=2)


def _plugins(component: Resolved) -> Iterator[str]:
    """Yield the plugins of a component and of its own components."""
    yield component.spec.plugin
    for value in component.arguments.values():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Resolved):
                yield from _plugins(one)


def effective_recipe(directory: RunDirectory, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a run; `train.schedule` and `train.warmup` of earlier versions become `train.lr_schedule`,
    and `data.label_dropout` becomes `data.condition_dropout`.

    Overrides change `sample`, or state the new place of files of codec, network and conditions, whose weights are in
    the run, or are those of another run with the recorded hash.

    Raises:
        UsageError: DK017, an override changes anything else.
    """
    tree = parse(directory.effective_text(), str(directory.effective)).plain()
    if other := [text for text in overrides if not text.strip().startswith("sample.") and not _is_place(tree, text)]:
        fix = "set a key of `sample`, such as --set sample.steps=20, or run a recipe with the other value"
        raise UsageError(f"{other[0]!r} cannot be set: the run is trained", code="DK017", fix=fix)
    train, data = (tree.get(key) if isinstance(tree, dict) else None for key in ("train", "data"))
    require_plugin_files(directory)
    known: dict[str, Any] = {"spec": DataRecord.read(directory).spec, "record": SourceRecord.read(directory).record}
    if not isinstance(tree, dict) or not isinstance(train, dict) or not isinstance(data, dict):
        return load_recipe(directory.effective, overrides, **known)
    overrides = of_preset(tree, overrides)
    earlier = {"schedule", "warmup"} & train.keys(), "label_dropout" in data
    if not any(earlier):
        return load_recipe(directory.effective, overrides, **known)
    if "label_dropout" in data:
        data["condition_dropout"] = data.pop("label_dropout")
    if not earlier[0]:
        return load_recipe(tree, overrides, **known)
    options = train.pop("schedule", {"name": "constant"})
    if options["name"] == "constant":
        options = {"name": "constant"}
    train["lr_schedule"] = {**options, "warmup": train.pop("warmup", 0)}
    return load_recipe(tree, overrides, **known)


def _is_place(tree: Any, override: str) -> bool:
    """Return whether an override states a path of the codec, the network or a condition of a whole recipe."""
    *at, option = override.partition("=")[0].strip().split(".")
    kind = OF_WEIGHTS.get(at[0]) if at else None
    for key in at:
        tree = tree.get(key) if isinstance(tree, dict) else None
    name = tree.get("name") if isinstance(tree, dict) else None
    if kind is None or not isinstance(name, str):
        return False
    try:
        found = component_parameters(registry().find(kind, name).load(), kind)
    except DiffkitError:
        return False  # the fault is reported where the recipe is read
    return any(one.name == option and one.is_path for one in found)
