"""The arrows of the house (docs/develop/architecture.md): who may import whom, and what nobody imports."""

from __future__ import annotations

import ast
import importlib
import sys
import tomllib
from collections.abc import Iterator

import pytest

from diffkit import testing

from .sources import ROOT, Import, Source, core, plugins, public_names, shipped

LAYERS = (
    {"errors", "scalar", "config", "interface", "tiles"},
    {"level"},
    {"estimate"},
    {"schedule", "parameterization", "transition", "chart", "network", "noise", "data"},
    {"denoiser", "classifier", "codec", "conditioner", "metric", "optimizer", "strategy"},
    {"sampler", "grid", "times", "objective", "guidance", "callback", "reconstruction"},
    {"blending"},
)
ALGEBRA = set().union(*LAYERS)
PUBLIC = ALGEBRA | {"host", "testing", "oracles", "likelihood"}
PACKAGES = {
    "host": {"errors"},
    "storage": {"errors"},
    "runtime": {"errors"},
    "report": set(),
    "oracles": ALGEBRA,
    "likelihood": ALGEBRA,
    "train": ALGEBRA | {"storage", "runtime"},
    "recipe": ALGEBRA | {"host", "train"},
    "runs": ALGEBRA | {"host", "recipe", "train", "report", "storage", "runtime"},
    "testing": ALGEBRA | {"host", "recipe", "train", "oracles"},
    "cli": {"errors", "config", "host", "recipe", "train", "runs", "testing", "storage", "runtime"},
    "__main__": {"cli"},
    "ddpm": PUBLIC,
    "basics": PUBLIC | {"runtime"},  # the progress of its commands, a public name
}
LEAVES = {"ddpm", "basics"}
NETWORK = {"aiohttp", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "ssl", "urllib", "urllib3", "wandb"}
MODULES = {source.module for source in core()}


def part(module: str) -> str:
    """ "sampler" of diffkit.sampler, "host" of diffkit.host.loader, "" of diffkit itself."""
    return ([*module.split("."), "", ""])[1]


def used(source: Source) -> Iterator[tuple[str, Import]]:
    """(part of diffkit, import) for everything that a source takes of diffkit, apart from its own part."""
    for one in source.imports:
        if one.module.split(".")[0] != "diffkit":
            continue
        target = one.target if one.target in MODULES else one.module
        if target == "diffkit" and one.name in public_names():
            target = public_names()[one.name]
        if part(target) and part(target) != part(source.module):
            yield part(target), one


def exported(one: Import) -> bool:
    """Whether a package of diffkit itself offers this name to everybody."""
    return one.module.count(".") <= 1 and one.name in importlib.import_module(one.module).__all__


@pytest.mark.parametrize("name", sorted(ALGEBRA & {part(m) for m in MODULES}))
def test_the_algebra_imports_what_lies_below(name: str) -> None:
    (source,) = [s for s in core() if s.module == f"diffkit.{name}"]
    height = next(i for i, layer in enumerate(LAYERS) if name in layer)
    below = set().union(*LAYERS[:height])
    wrong = {(target, one.line) for target, one in used(source) if not one.typing_only and target not in below}
    assert wrong == set(), f"{source.path} may import {sorted(below)} only"


def test_every_file_of_the_core_has_a_layer() -> None:
    files = {s.module.split(".")[1] for s in core() if s.module.count(".") >= 1}
    assert files == ALGEBRA | set(PACKAGES)


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_packages_import_what_they_may(name: str) -> None:
    wrong = {
        f"{source.path}:{one.line} imports {target}"
        for source in core()
        if part(source.module) == name
        for target, one in used(source)
        if not one.typing_only and target not in PACKAGES[name]
    }
    assert wrong == set()


def test_the_host_imports_neither_torch_nor_numpy() -> None:
    wrong = {
        f"{source.path}:{one.line}"
        for source in core()
        if part(source.module) in ("host", "errors")
        for one in source.imports
        if one.module.split(".")[0] in ("torch", "numpy")
    }
    assert wrong == set()


def test_the_core_imports_no_leaf() -> None:
    wrong = {
        f"{source.path}:{one.line}"
        for source in core()
        for one in source.imports
        if part(source.module) not in LEAVES
        and ((part(one.module) in LEAVES and one.module.startswith("diffkit.")) or one.module.startswith("diffkit_"))
    }
    assert wrong == set()


@pytest.mark.parametrize("distribution", sorted(plugins()))
def test_plugins_use_public_names_and_declared_plugins(distribution: str) -> None:
    text = (ROOT / "plugins" / distribution / "pyproject.toml").read_text(encoding="utf-8")
    declared = {d.replace("-", "_") for d in _names(tomllib.loads(text)["project"]["dependencies"])}
    own = distribution.replace("-", "_")
    wrong = set()
    for source in plugins()[distribution]:
        for target, one in used(source):
            if target not in PUBLIC | LEAVES and not exported(one):
                wrong.add(f"{source.path}:{one.line} imports {one.target}")
        for one in source.imports:
            root = one.module.split(".")[0]
            if root.startswith("diffkit_") and root != own and root not in declared:
                wrong.add(f"{source.path}:{one.line} imports {root}, which is not declared")
    assert wrong == set()


def test_leaves_take_no_private_name() -> None:
    leaves = [s for s in core() if part(s.module) in LEAVES] + [s for ps in plugins().values() for s in ps]
    wrong = {
        f"{source.path}:{one.line} imports {one.target}"
        for source in leaves
        for one in source.imports
        if one.module.split(".")[0] == "diffkit"
        and not one.module.startswith(f"diffkit.{part(source.module)}")
        and any(piece.startswith("_") and piece != "__version__" for piece in one.target.split("."))
    }
    assert wrong == set()


LOCAL_ADDRESS = {("diffkit.runtime.launch", "socket"), ("diffkit.runtime.distributed", "socket")}
"""The launcher reads the addresses of this host, to be reached by the other hosts of a run, and sends nothing; a
process connects to the place of the first process, which the user or the launcher names."""


def test_nothing_speaks_to_a_network() -> None:
    """No telemetry, no downloads."""
    wrong = {
        f"{source.path}:{one.line} imports {one.module}"
        for source in shipped()
        for one in source.imports
        if one.module.split(".")[0] in NETWORK and (source.module, one.module) not in LOCAL_ADDRESS
    }
    assert wrong == set()


def test_only_declared_distributions_are_imported() -> None:
    """What a wheel imports is the standard library, diffkit, or a dependency that some extra declares."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    declared = {*_names(project["dependencies"]), *_names(extras["quickstart"]), *_names(extras["tensorboard"])}
    declared |= set(_names(extras["streams"]))
    names = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    allowed = {names.get(d, d) for d in declared} | {"diffkit", "pydantic_core"}
    wrong = {
        f"{source.path}:{one.line} imports {one.module}"
        for source in core()
        for one in source.imports
        if (root := one.module.split(".")[0]) not in allowed
        and root not in sys.stdlib_module_names
        and not (root == "pytest" and source.module == "diffkit.testing.pytest_plugin")
        and not (root == "hypothesis" and source.module == "diffkit.testing.hypothesis_strategies")
    }
    assert wrong == set()


def test_no_module_bears_the_name_of_a_public_function() -> None:
    functions = {name for name in public_names() if name.islower()}
    inner = {name for name in testing.__all__ if name.islower()}
    named = {m for m in MODULES if m.split(".")[-1] in functions}
    named |= {m for m in MODULES if m.startswith("diffkit.testing.") and m.split(".")[-1] in inner}
    assert named == set()


ROOMS = ("train", "recipe", "host", "runs", "storage", "runtime")
MAX_FILES = 68
"""Files of these rooms, `__init__` counted: each more is a concept that someone has to find. A new concept first looks
for the file of the noun that it belongs to; only a file that would become too long, or an import circle, is a reason
for another one."""
LOCAL_IMPORTS = {
    "diffkit.cli": "listing commands start without torch",
    "diffkit.basics.commands": "a command, imported at each start as those of diffkit.cli",
    "diffkit.basics.plugin": "the hook of commands, so that a library does not import click",
    "diffkit_diffusers.commands": "commands of a plugin, imported at each start as those of diffkit.cli",
    "diffkit_compression.commands": "commands of a plugin, imported at each start as those of diffkit.cli",
    "diffkit_flow.command": "commands of a plugin, imported at each start as those of diffkit.cli",
    "diffkit_inverse.command": "commands of a plugin, imported at each start as those of diffkit.cli",
    "diffkit_stable_diffusion.commands": "commands of a plugin, imported at each start as those of diffkit.cli",
    "diffkit_stable_diffusion.plugin": "the hook of commands, so that a library does not import click",
    "diffkit_diffusers.plugin": "the hook of commands, so that a library does not import click",
    "diffkit_compression.plugin": "the hook of commands, so that a library does not import click",
    "diffkit_flow.plugin": "the hook of commands, so that a library does not import click",
    "diffkit_inverse.plugin": "the hook of commands, so that a library does not import click",
}
"""Modules whose functions import other modules of the project, and the reason."""


def test_rooms_have_few_files() -> None:
    assert len([s for s in core() if part(s.module) in ROOMS]) <= MAX_FILES


def test_no_import_circle() -> None:
    """Neither at run time nor for type checkers alone, neither at the top of a file nor inside functions."""
    graph = {s.module: {_module_of(one) for one in s.imports} & MODULES - {s.module} for s in core()}
    graph = {module: {m for m in targets if not module.startswith(f"{m}.")} for module, targets in graph.items()}
    lazy = {"diffkit", "diffkit.recipe", "diffkit.runs", "diffkit.testing"}  # load their names on first use
    graph = {module: targets - lazy for module, targets in graph.items() if module not in lazy}
    assert _circles(graph) == []


def _module_of(one: Import) -> str:
    return one.target if one.target in MODULES else one.module


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Each group of modules that import each other, found by removing modules that import nothing left."""
    rest = {module: set(targets) for module, targets in graph.items()}
    while free := [module for module, targets in rest.items() if not targets & rest.keys()]:
        for module in free:
            del rest[module]
    importing: dict[str, set[str]] = {module: set() for module in rest}
    for module, targets in rest.items():
        for target in targets & rest.keys():
            importing[target].add(module)
    while free := [module for module, sources in importing.items() if not sources & importing.keys()]:
        for module in free:
            del importing[module]
    return [sorted(importing)] if importing else []


def test_circles_are_found() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_functions_import_no_module_of_the_project() -> None:
    """`diffkit.cli` does, so that it starts without torch; so do the lazy names of packages."""
    wrong = set()
    for source in shipped():
        if source.module.startswith(tuple(LOCAL_IMPORTS)):
            continue
        inside = {
            id(node)
            for function in source.nodes
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for node in ast.walk(function)
        }
        for node in source.nodes:
            if not isinstance(node, ast.ImportFrom) or id(node) not in inside:
                continue
            if node.level or (node.module or "").startswith("diffkit"):
                wrong.add(f"{source.path}:{node.lineno}")
    assert wrong == set()


def test_every_dependency_is_imported() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = {"pillow": "PIL", "pyyaml": "yaml"}
    wanted = {names.get(d, d) for d in _names(tomllib.loads(text)["project"]["dependencies"])}
    used = {one.module.split(".")[0] for source in core() for one in source.imports}
    assert wanted - used == set()


def _names(requirements: list[str]) -> set[str]:
    """ "torch" of "torch>=2.10"."""
    cut = (r.partition("[")[0].partition(";")[0] for r in requirements)
    return {part.split(">")[0].split("<")[0].split("=")[0].split("~")[0].strip().lower() for part in cut}
