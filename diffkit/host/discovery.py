"""Find plugins, which are entry points of the group `diffkit` or files, and read the switches that turn them off.

`importlib.metadata.entry_points` fails as a whole if one distribution is damaged; here entry points are read one
distribution at a time: the damaged one is reported as a broken plugin, and the others are found. The switches are
`--plugins`, `-p no:NAME` and DIFFKIT_PLUGINS. The default plugins of diffkit always load.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from types import ModuleType

from ..errors import PluginError, UsageError
from .entry import TARGET

GROUP = "diffkit"
VARIABLE = "DIFFKIT_PLUGINS"
DEFAULTS = {"ddpm": "diffkit.ddpm.plugin", "basics": "diffkit.basics.plugin"}


@dataclass(frozen=True)
class Candidate:
    """A plugin that was found and is not yet imported; `fault` is the reason why it cannot be imported."""

    name: str
    origin: str
    distribution: str | None = None
    version: str | None = None
    essential: bool = False
    path: Path | None = None
    fault: BaseException | None = field(default=None, compare=False)

    def load(self) -> ModuleType:
        """Import the plugin module. Code of plugins is imported here and in `Registered.load` only."""
        if self.fault is not None:
            raise self.fault
        if self.path is not None:
            return import_file(self.path)
        if not TARGET.fullmatch(f"{self.origin}:x"):
            raise PluginError(f'entry point "{self.name} = {self.origin}" does not name a module', code="DK201")
        return importlib.import_module(self.origin)


def candidates() -> list[Candidate]:
    """Return the default plugins, then all others sorted by name and distribution.

    The default plugins need no entry points, so that diffkit also works from a source folder or an archive.
    """
    defaults = {name: Candidate(name, module, "diffkit", essential=True) for name, module in DEFAULTS.items()}
    others: list[Candidate] = []
    for candidate in _installed():
        default = defaults.get(candidate.name)
        if default is not None and (candidate.distribution, candidate.origin) == ("diffkit", default.origin):
            defaults[candidate.name] = Candidate(default.name, default.origin, "diffkit", candidate.version, True)
        else:
            others.append(candidate)
    others.sort(key=lambda candidate: (candidate.name, candidate.distribution or "", candidate.origin))
    return [*defaults.values(), *others]


def _installed() -> Iterator[Candidate]:
    seen: set[str] = set()
    for distribution in distributions():
        try:
            points = _points(distribution)
            if not points:
                continue
            name, version = _identity(distribution)
        except Exception as error:  # noqa: BLE001 - damaged metadata can raise any error of its parser
            folder = str(getattr(distribution, "_path", "a distribution"))
            fault = PluginError(f"the entry points of {folder} cannot be read", code="DK201")
            fault.__cause__ = error
            yield Candidate(Path(folder).stem, folder, fault=fault)
            continue
        if name in seen:  # an older copy later on the path, which Python does not import
            continue
        seen.add(name)
        for point in points:
            yield Candidate(point.name, point.value, name, version)


def _points(distribution: Distribution) -> list[EntryPoint]:
    text = distribution.read_text("entry_points.txt")
    if not text or GROUP not in text:
        return []
    return [point for point in distribution.entry_points if point.group == GROUP]


def _identity(distribution: Distribution) -> tuple[str, str | None]:
    """Return the name and the version from the head of the metadata; parsing all of it takes a millisecond for each
    plugin.
    """
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    head: dict[str, str] = {}
    for line in text.splitlines():
        if not line:
            break
        key, _, value = line.partition(":")
        head.setdefault(key.lower(), value.strip())
    folder = Path(str(getattr(distribution, "_path", "unknown"))).stem
    name = head.get("name") or folder.partition("-")[0]
    return name.lower().replace("_", "-"), head.get("version") or folder.partition("-")[2] or None


_current: dict[str, ModuleType] = {}
_released: dict[str, ModuleType] = {}
"""Modules of one-file plugins of this process, by name: those of the present registry, and those of earlier ones."""


def candidate(path: str | Path) -> Candidate:
    """Return the candidate for a one-file plugin: `my_schedule.py` has the name my-schedule and the module my_schedule.

    Raises UsageError DK012 if the file does not exist, or if its name cannot be that of a new module.
    """
    file = Path(path).resolve()
    name = file.stem
    if not file.is_file() or file.suffix != ".py":
        raise UsageError(f"{path} is not a Python file", code="DK012", fix="give the path of a .py file")
    if not (name.isidentifier() and name.isascii()):
        message = f'"{file.name}" cannot be imported'
        raise UsageError(message, code="DK012", fix="name it with letters, digits and underscores")
    if (place := _taken_by(name, file)) is not None:
        raise UsageError(f'there already is a module "{name}", {place}', code="DK012", fix=f"rename {file.name}")
    return Candidate(name.replace("_", "-").strip("-").lower(), str(file), path=file)


def import_file(path: Path) -> ModuleType:
    """Run a file as the module with its stem as name, so that targets such as "my_schedule:Mine" resolve."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = _current[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem], _current[path.stem]
        raise
    return module


def forget() -> None:
    """Release the names of all one-file plugins for other files.

    A module stays in `sys.modules` until another file takes its name: its classes need that for annotations and
    pickle, and a registry that is still in use loads its components from there.
    """
    _released.update(_current)
    _current.clear()


def _taken_by(name: str, file: Path) -> str | None:
    """Return where another module of this name lies, "built-in" for one without a file; None if the name is free."""
    if name in sys.modules:
        module = sys.modules[name]
        return None if module is _released.get(name) else getattr(module, "__file__", None) or "built-in"
    spec = importlib.util.find_spec(name)
    if spec is None or Path(spec.origin or "").resolve() == file:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), "built-in")


@dataclass(frozen=True)
class Switches:
    """`only` are the plugins that may load (None: all that are installed), `without` the names that may not."""

    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    origin: str = "--plugins"

    @classmethod
    def read(cls, plugins: str | Iterable[str] | None = None, without: Iterable[str] = ()) -> Switches:
        """Read the switches from arguments, or from DIFFKIT_PLUGINS if `plugins` is None.

        Args:
            plugins: "a,b" or a list of names: these may load; "none": the default plugins only.
            without: names of plugins that may not load.

        Returns:
            The switches; all installed plugins may load if neither argument nor variable is given.

        Raises:
            UsageError: DK011 if the text is empty, or names "none" beside others.
        """
        origin = "--plugins"
        if plugins is None:
            origin, plugins = VARIABLE, os.environ.get(VARIABLE) or None
        dropped = frozenset(without)
        if plugins is None:
            return cls(None, dropped, origin)
        names = [name.strip() for name in (plugins.split(",") if isinstance(plugins, str) else plugins)]
        if names == ["none"]:
            return cls(frozenset(), dropped, origin)
        if isinstance(plugins, str) and not any(names):
            raise UsageError(f"{origin} is empty", code="DK011", fix='name plugins, "a,b", or write "none"')
        if "none" in names:
            raise UsageError(
                f'{origin}: "none" cannot be combined with names',
                code="DK011",
                fix='name plugins, "a,b", or write "none"',
            )
        return cls(frozenset(filter(None, names)), dropped, origin)

    def verify(self, installed: Collection[str], essential: Collection[str]) -> None:
        """Raise UsageError DK011 for a name that no plugin has, and for a default plugin in `without`."""
        for name in sorted((self.only or frozenset()) | self.without):
            if name in essential:
                if name in self.without:
                    message = f'plugin "{name}" is part of diffkit and cannot be disabled'
                    raise UsageError(message, code="DK011", fix=f"leave out no:{name}")
            elif name not in installed:
                near = difflib.get_close_matches(name, installed, 1)
                raise UsageError(
                    f'{self.origin if name in (self.only or ()) else "-p no:" + name}: no plugin "{name}" is installed',
                    code="DK011",
                    hint=f'did you mean "{near[0]}"?' if near else None,
                    choices=sorted(installed),
                    fix="see diffkit plugins",
                )

    def disabled_reason(self, names: Collection[str | None]) -> str | None:
        """Return why the plugin with one of these names is off; None if it may load."""
        for name in names:
            if name in self.without:
                return f"disabled by -p no:{name}"
        if self.only is not None and self.only.isdisjoint(names):
            return f"not named by {self.origin}"
        return None
