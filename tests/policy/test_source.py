"""What a source file may be: short, documented, without code that runs data, in the words of the glossary."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator

import pytest

from diffkit.host import registry

from .sources import ROOT, Source, core, plugins, shipped

NETWORKS = {"diffkit/ddpm/unet.py"}
LONGEST, LONGEST_NETWORK = 500, 700

UNPICKLING = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
RUNNING = {"eval", "exec", "__import__"}
TENSORS = {
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.package",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
}
WORKER = "plugins/diffkit-diffusers/src/diffkit_diffusers/convert_worker.py"
EXEMPT = {
    WORKER: "reads foreign weights in a process of its own, with limits, which is how they become ours",
    "plugins/diffkit-fidelity/src/diffkit_fidelity/efficientnet.py": "weights of an installed package, by their hash",
}
IMPORTING = {
    "diffkit/basics/trackers.py": "wandb and mlflow, which are extras",
    "diffkit/cli/main.py": "commands on first use",
    "diffkit/host/discovery.py": "plugin modules, named by installed metadata",
    "diffkit/host/loader.py": "components, named by installed plugins",
    "diffkit/testing/__init__.py": "public names on first use",
    "diffkit/testing/law_registry.py": "the modules of laws, those of plugins included",
}


def test_files_can_be_read_in_one_sitting() -> None:
    long = {
        s.path: lines
        for s in shipped()
        if (lines := s.text.count("\n")) > (LONGEST_NETWORK if s.path in NETWORKS else LONGEST)
    }
    assert long == {}


def test_no_data_becomes_code() -> None:
    """No pickle, eval, exec or loader that runs what it reads."""
    wrong = {
        f"{source.path}:{line} {what}"
        for source in shipped()
        if source.path not in EXEMPT
        for line, what in _dangerous(source)
    }
    assert wrong == set()


def _dangerous(source: Source) -> Iterator[tuple[int, str]]:
    for one in source.imports:
        if one.module.split(".")[0] in UNPICKLING or (one.module == "torch" and one.name in ("load", "save")):
            yield one.line, one.target
    for node in source.nodes:
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in RUNNING or name in TENSORS:
            yield node.lineno, name
        for keyword in node.keywords:
            harmless = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "allow_pickle" and not harmless:
                yield node.lineno, "allow_pickle"
            if keyword.arg == "shell" and not harmless:
                yield node.lineno, "shell"


def test_texts_are_imported_in_few_places_only() -> None:
    """A recipe or checkpoint never names what is imported; `import_module` stands where installed code names it."""
    found = {s.path for s in core() for node in s.nodes if isinstance(node, ast.Call) and _imports(node)}
    assert found <= set(IMPORTING), "state here who names what is imported"
    assert set(IMPORTING) <= found


def _imports(call: ast.Call) -> bool:
    return ast.unparse(call.func).endswith("import_module")


def value_module(value: object) -> object:
    """The module that defines a class or function; None for other values."""
    return getattr(value, "__module__", None)


MODULES = sorted(s.module for s in core() if s.module != "diffkit.testing.pytest_plugin")


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_is_documented(module: str) -> None:
    """Every module, class, function and method without underscore; an implementation may leave it to its interface."""
    loaded = importlib.import_module(module)
    missing = [] if loaded.__doc__ else [module]
    protocols = [value for value in vars(loaded).values() if getattr(value, "_is_protocol", False)]
    for name, value in vars(loaded).items():
        if name.startswith(("_", "diffkit_")) or not name.isidentifier() or value_module(value) != module:
            continue  # the hooks are documented once for all, in host/entry.py
        if inspect.isclass(value):
            missing += [f"{name}.{attribute}" for attribute in _undocumented(value, protocols)]
            if not value.__doc__ or value.__doc__.startswith(f"{name}("):  # what a dataclass writes by itself
                missing.append(name)
        elif inspect.isfunction(value) and not inspect.getdoc(value):
            missing.append(name)
    assert missing == []


def _undocumented(cls: type, protocols: list[type]) -> Iterator[str]:
    """Methods and properties of its own that neither a base class nor a protocol of the module explains."""
    inherited = {name for base in (*cls.__mro__[1:], *protocols) for name in (*vars(base), *_annotated(base))}
    for name, value in vars(cls).items():
        inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if name.startswith("_") or not (inspect.isfunction(inner) or isinstance(inner, property)):
            continue
        if inspect.isfunction(inner) and inner.__qualname__ != f"{cls.__qualname__}.{name}":
            continue
        if name not in inherited and not inspect.getdoc(inner):
            yield name


def _annotated(cls: type) -> list[str]:
    return list(vars(cls).get("__annotations__", {}))


FOREIGN = ("diffkit-diffusers", "diffkit-stable-diffusion")
"""Packages that read files of diffusers."""
WORDS = re.compile(r"scheduler|(^|_)preds?($|_)", re.IGNORECASE)


def test_words_that_are_not_used() -> None:
    """ "scheduler" means three things elsewhere, and `pred` nothing in particular; foreign files have such names."""
    everything = [*core(), *(s for d, sources in plugins().items() if d not in FOREIGN for s in sources)]
    wrong = {f"{s.path}:{line} {name}" for s in everything for line, name in _identifiers(s) if WORDS.search(name)}
    assert wrong == set()


def _identifiers(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.nodes:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name():
                yield node.lineno, node.id
            case ast.Attribute() if isinstance(node.ctx, ast.Store):
                yield node.lineno, node.attr


INTERFACES = {
    "schedule": {"level": "t", "time": "level", "index": "t"},
    "parameterization": {
        "coefficients": "level",
        "target": "x0 eps level",
        "decode": "y x level",
        "weight": "level",
        "out_channels": "channels",
        "c_in": "level",
        "c_noise": "level",
    },
    "network": {"forward": "x c_noise label"},
    "sampler": {"init": "levels", "step": "denoise x t s state noise", "nfe": "n"},
    "grid": {"points": "schedule n", "levels": "schedule n", "times": "schedule n"},
    "times": {"draw": "uniform schedule", "correction": "t schedule", "update": "t each"},
    "objective": {"__call__": "model x0 noise ema cond", "update": "t each"},
    "weighting": {"__call__": "level", "on_output": "level parameterization"},
    "guidance": {"__call__": "denoise"},
    "codec": {"encode": "x noise", "decode": "z", "spec": "data"},
    "reconstruction-loss": {"__call__": "out x step", "critic_loss": "out x step"},
    "conditioner": {"forward": "raw", "null": ""},
    "augmentation": {"__call__": "x uniform cond"},
    "data": {"split": "part", "to_model_range": "raw", "to_storage": "x"},
    "metric": {"__call__": "evaluation"},
    "optimizer": {"__call__": "named_parameters"},
    "lr-schedule": {"__call__": "step steps"},
    "strategy": {"wrap": "module", "gradient_sync": "module last", "gather": "rows total", "shard": "count"},
    "callback": {"on_start": "directory", "on_step": "info", "on_save": "step", "on_end": "result"},
    "tracker": {"on_start": "directory", "log": "step values", "on_end": "result"},
}
ELSEWHERE = {
    "timesteps",
    "num_steps",
    "n_steps",
    "guidance_scale",
    "prediction_type",
    "lam",
    "lambda_",
    "alphas_cumprod",
}


@pytest.mark.parametrize("kind", sorted(INTERFACES))
def test_signatures_speak_the_glossary(kind: str) -> None:
    """The base class and each registered component call the parameters of the interface alike, and what they add in
    the words of the glossary."""
    base = registry().kinds[kind].base.partition(":")
    classes = {kind: getattr(importlib.import_module(base[0]), base[2])}
    classes |= {one.name: one.load() for one in registry().entries(kind)}
    for name, cls in classes.items():
        for method, told in INTERFACES[kind].items():
            given = [p for p in inspect.signature(getattr(cls, method)).parameters if p != "self"]
            ours = told.split()
            assert given[: len(ours)] == ours, f"{kind} {name}.{method}"
        if name != kind:
            options = set(inspect.signature(cls).parameters)
            assert not options & (ELSEWHERE | {"name", "sample", "kwargs"}), f"{kind} {name}"


def test_kinds_of_the_core_have_an_interface_here() -> None:
    from diffkit.host.entry import KINDS

    assert {kind.name for kind in KINDS} == set(INTERFACES)


UNSOURCED = {
    "conditioner/unchanged": "its definition",
    "conditioner/of-run": "that of another run",
    "lr-schedule/constant": "its definition",
    "lr-schedule/linear": "its definition",
    "grid/angle": "ours; its docstring says why",
    "extractor/plain-values": "its definition",
    "operator/mask": "its definition",
    "operator/downsample": "its definition",
    "operator/blur": "its definition",
    "guidance/known": "it changes no number",
    "network/oracle": "closed forms, the identities D1 and E1",
    "network/diffusers": "whatever diffusers has",
    "network/diffusers-unet": "the U-Net of diffusers",
    "weighting/uniform": "its definition",
    "metric/psnr": "its definition",
    "metric/accuracy": "its definition",
    "reconstruction-loss/l1": "its definition",
    "reconstruction-loss/l2": "its definition",
    "strategy/auto": "a choice between the other two",
    "strategy/single": "its definition",
    "strategy/ddp": "DistributedDataParallel of torch",
}


def test_components_name_their_source() -> None:
    """Formulas come from somewhere: `Source:` names the paper and the equation. What only holds data needs none."""
    free = {"data", "tracker", "callback", "strategy", "codec", "augmentation"}
    missing = {
        f"{one.kind}/{one.name}"
        for one in registry().entries()
        if one.kind not in free and "Source:" not in (inspect.getdoc(one.load()) or "")
    }
    assert missing - set(UNSOURCED) == set()


def test_packages_are_typed() -> None:
    assert (ROOT / "diffkit" / "py.typed").is_file()
    for distribution in plugins():
        package = distribution.replace("-", "_")
        assert (ROOT / "plugins" / distribution / "src" / package / "py.typed").is_file()


def test_architecture_lists_every_part() -> None:
    page = (ROOT / "docs" / "develop" / "architecture.md").read_text(encoding="utf-8")
    parts = {s.path.split("/")[1] for s in core()}
    assert {p for p in parts if not re.search(rf"\b{re.escape(p)}", page)} == set()
    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    files = {p for p in parts if p.endswith(".py") and not p.startswith("__")}
    assert {p for p in files if f"`{p}`" not in concepts} == set()


MAX_FILES_OF_A_WALK = 14


def test_walks_name_files_that_exist() -> None:
    """Each walk through the code (docs/develop/architecture.md) names its files in order, and not too many."""
    page = (ROOT / "docs" / "develop" / "architecture.md").read_text(encoding="utf-8")
    walks = re.findall(r"^## Walk \d: .*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert len(walks) == 3
    for walk in walks:
        named = list(dict.fromkeys(re.findall(r"`([a-z_/]+\.py)`", walk)))
        assert [file for file in named if not (ROOT / "diffkit" / file).is_file()] == []
        assert 5 <= len(named) <= MAX_FILES_OF_A_WALK, walk.splitlines()[0]
