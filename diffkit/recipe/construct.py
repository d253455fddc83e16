"""Build the components of a recipe in one order: once for its validation, and modules for each assembly."""

from __future__ import annotations

import contextlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..codec import Codec, CodecRecord
from ..conditioner import Conditioner, Conditions
from ..data import ConditionSpec, Data, DataSpec, Part, Split
from ..denoiser import Denoiser
from ..errors import DataError, DiffkitError, Mark, PluginError, is_out_of_memory, plain
from ..host.process_state import Change, SideEffectWarning, kept_state
from ..network import Network, Shape
from ..noise import key
from .errors import cannot_build, no_condition, no_conditioner, refused_options, too_large, unavailable
from .signature import REQUIRED, Resolved
from .yaml import Node

ORDER = (
    *("data", "codec", "schedule", "parameterization", "conditioner", "shape", "augmentation", "network"),
    *("weighting", "times", "objective", "reconstruction-loss", "sampler", "grid", "guidance", "metric"),
    *("optimizer", "lr-schedule", "strategy", "callback", "tracker"),
)
"""The kinds in the order in which a recipe builds them; kinds that plugins add are built last.

`shape`, the inputs and outputs of a network, follows from data, codec, parameterization and conditioners.
"""

INJECTED = ("data", "codec", "schedule", "parameterization", "network", "objective", "sample.sampler", "sample.grid")
"""Paths of the components that later components may require."""
CONDITIONS = "conditions"
"""The path above those of conditioners, and the name of all of them in a scope."""

RECORD = "record"
"""The name of the record of the codec of a run in a scope, and among the objects of its recipe."""

OWN_STATE = {"network", "strategy", "callback", "tracker"}
"""Kinds that every assembly builds for itself, like modules and objects that contain modules; all others are built
once.
"""


def in_order(components: Iterable[Resolved]) -> tuple[Resolved, ...]:
    """Sort components by the order in which a recipe builds them."""
    return tuple(sorted(components, key=lambda one: _rank(one.spec.kind)))


def arguments_of(component: Resolved, scope: Mapping[str, object], build: Callable[[Resolved], Any]) -> dict[str, Any]:
    """Return the arguments of the constructor of a component.

    Args:
        component: the resolved component.
        scope: the objects that were built before, by kind, and the `shape`.
        build: a function that builds a nested component.

    Returns:
        One entry for each parameter that is injected, given in the recipe, or nested.

    Raises:
        PluginError: DK251 if the scope lacks the object that a parameter without default requires.
    """
    arguments: dict[str, Any] = {}
    for parameter in component.parameters:
        if parameter.name in component.arguments:
            value = component.arguments[parameter.name]
            if isinstance(value, tuple):
                value = tuple(build(item) if isinstance(item, Resolved) else item for item in value)
            arguments[parameter.name] = build(value) if isinstance(value, Resolved) else value
        elif parameter.role == "injected" and parameter.target in scope:
            arguments[parameter.name] = scope[parameter.target]
        elif parameter.role == "injected" and parameter.default is REQUIRED:
            raise unavailable(component.spec, parameter.target, _before(component.spec.kind))
    return arguments


def construct(component: Resolved, scope: Mapping[str, object], ready: Mapping[str, Any]) -> Any:
    """Build a component and its nested components.

    Args:
        component: the component.
        scope: the objects that were built before, by kind, and the `shape`.
        ready: objects by path; a component with its path among them is not built again.

    Returns:
        The object of the component.
    """
    if component.path in ready:
        return ready[component.path]
    inside = scope_inside(component.cls, scope)
    arguments = arguments_of(component, scope, lambda inner: construct(inner, inside, ready))
    with kept_state(output=True) as changes:
        made = component.cls(**arguments)
    warn_of(component, changes)
    return made


def scope_inside(cls: type, scope: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the scope for components nested in one of the class `cls`: a network may give them another shape."""
    if issubclass(cls, Network) and "shape" in scope:
        return {**scope, "shape": cls.inner_shape(scope["shape"])}
    return scope


def warn_of(component: Resolved, changes: Iterable[Change]) -> None:
    """Warn of changes that the constructor of a component made to the process; its plugin is named."""
    for change in changes:
        spec = component.spec
        message = f'plugin "{spec.plugin}": the constructor of {spec.kind} {spec.name}: {change}'
        warnings.warn(plain(message), SideEffectWarning, stacklevel=3)


def condition_of(path: str) -> str | None:
    """Return the name of the condition whose conditioner is at `path`; None for another component."""
    parent, _, name = path.rpartition(".")
    return name if parent == CONDITIONS else None


def add_shape(
    scope: dict[str, Any], conditioners: Mapping[str, Conditioner] | None, predicts: str | None = None
) -> None:
    """Add the `conditions` and the `shape` to a scope that holds data, codec and parameterization.

    Args:
        scope: the objects by kind.
        conditioners: by name of their condition; None for every condition of the data, unchanged.
        predicts: the condition whose classes the network of a classifier predicts; None for other tasks.

    Raises:
        DataError: data is absent.
    """
    if predicts is not None and "shape" not in scope and {"data", "codec"} <= scope.keys():
        classes = scope["data"].spec.conditions[predicts].classes
        spec = scope["codec"].spec(scope["data"].spec)
        scope[CONDITIONS] = Conditions({}, {})
        scope["shape"] = Shape(spec.channels, classes, tuple(spec.size))
    if "shape" not in scope and {"data", "codec", "parameterization"} <= scope.keys():
        data: DataSpec = scope["data"].spec
        spec = scope["codec"].spec(data)
        out = scope["parameterization"].out_channels(spec.channels)
        conditions = Conditions.unchanged(data.conditions)
        if conditioners is not None:
            conditions = Conditions(conditioners, data.conditions)
        scope[CONDITIONS] = conditions
        scope["shape"] = conditions.shape(Shape(spec.channels, out, tuple(spec.size), spec.classes))


@contextlib.contextmanager
def seeded(seed: int, path: str) -> Iterator[None]:
    """Seed the random numbers of a constructor by `seed` and `path`; the generators of the caller are restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, "initialisation", path))
        yield


class RecordedData(Data):
    """The data of a run, whose spec is recorded: samples can be drawn although the examples are absent or have changed.

    Args:
        spec: the spec of the data that the run was trained on.
        data: the data set as the recipe builds it, or the reason why it cannot be built.
    """

    def __init__(self, spec: DataSpec, data: Data | DataError) -> None:
        self._spec, self._data = spec, data
        self.workers = 0 if isinstance(data, DataError) else data.workers

    @property
    def spec(self) -> DataSpec:
        return self._spec

    def split(self, part: Part) -> Split:
        return self._same().split(part)

    def to_model_range(self, raw: Tensor) -> Tensor:
        own = self._overriding("to_model_range")
        return super().to_model_range(raw) if own is None else own.to_model_range(raw)

    def to_storage(self, x: Tensor) -> Tensor:
        own = self._overriding("to_storage")
        return super().to_storage(x) if own is None else own.to_storage(x)

    def truth(self) -> Denoiser | None:
        return None if isinstance(self._data, DataError) else self._data.truth()

    def fingerprint(self) -> str:
        return self._same().fingerprint()

    def _same(self) -> Data:
        """Return the data. Raises DataError if it is absent, or of another spec than the run was trained on."""
        if isinstance(self._data, DataError):
            raise self._data
        require_same(self._spec, self._data.spec)
        return self._data

    def _overriding(self, method: str) -> Data | None:
        """Return the data if it defines the method itself."""
        if isinstance(self._data, DataError) or getattr(type(self._data), method) is getattr(Data, method):
            return None
        return self._data


def require_same(recorded: DataSpec, present: DataSpec) -> None:
    """Raise DataError DK321 if the data is of another shape, range or classes than a run was trained on."""
    names = [one.name for one in fields(DataSpec)]
    changed = [name for name in names if getattr(recorded, name) != getattr(present, name)]
    if changed:
        raise DataError(
            "the data has changed since the run was trained",
            code="DK321",
            fix="restore the data; to train on the new data, pass another --out, and this run as train.init",
            notes=[f"{name}: {getattr(recorded, name)!r} then, {getattr(present, name)!r} now" for name in changed],
        )


class Trial:
    """Builds the components of a recipe to validate it: each once, networks on the meta device.

    `built` holds all objects by path, `scope` the objects that other components may require, by kind; `faults` and
    `data_error` report the components that failed. A component that depends on a failed one is skipped without a fault.
    `spec` is the recorded spec of the data of a run, see `RecordedData`; `record` that of its codec.
    """

    def __init__(
        self, failed: Iterable[str] = (), spec: DataSpec | None = None, record: CodecRecord | None = None
    ) -> None:
        self._spec = spec
        self.scope: dict[str, Any] = {} if record is None else {RECORD: record}
        self.built: dict[str, Any] = {}
        self.faults: list[DiffkitError] = []
        self.data_error: DataError | None = None
        self._failed = {path.rpartition(".")[2] for path in failed if path in (*INJECTED, "shape")}
        self._fresh: set[int] = set()
        self._conditioners: dict[str, Conditioner] | None = None
        self._predicts: str | None = None

    def build_all(
        self,
        components: Iterable[Resolved],
        seed: int,
        *,
        all_conditions: bool = True,
        predicts: str | None = None,
        conditioned: bool = True,
    ) -> None:
        """Build components.

        Args:
            components: the components in the order of building.
            seed: the seed of their random numbers.
            all_conditions: whether the network receives every condition of the data, not those of the conditioners.
            predicts: the condition that a classifier predicts; None for other tasks.
            conditioned: whether the network receives conditions at all.
        """
        self._predicts = predicts
        self._conditioners = None if all_conditions else {}
        for component in components:
            if follows_shape(component.spec.kind):
                self._add_shape()
            with seeded(seed, component.path):
                if (name := condition_of(component.path)) is not None:
                    self._add_conditioner(name, component)
                    continue
                made = self.attempt(component, meta=component.spec.kind == "network")
            found = self.data_error if made is None else made
            if component.path == "data" and self._spec is not None and found is not None:
                made = self.built["data"] = RecordedData(self._spec, found)
                self.data_error = None
            if component.path == "codec" and made is not None and not self._takes_data(component, made):
                made = None
            if component.path in INJECTED:
                if made is None:
                    self._failed.add(component.spec.kind)
                else:
                    self.scope[component.spec.kind] = made
            if component.path == "data" and all_conditions and conditioned:
                self._require_conditioners(component)
        self._add_shape()

    def _specs(self) -> Mapping[str, ConditionSpec] | None:
        """Return the conditions of the data; None if the data is absent."""
        data: Data | None = self.scope.get("data")
        try:
            return None if data is None else data.spec.conditions
        except DataError as error:
            self.data_error = error
            return None

    def _require_conditioners(self, data: Resolved) -> None:
        """Report a fault if the data has a text, which reaches no network unchanged."""
        texts = [name for name, spec in (self._specs() or {}).items() if spec.dtype == "text"]
        if texts:
            self._failed.add("shape")
            self._report(no_conditioner(texts[0]), data.entries["name"].mark)

    def _takes_data(self, component: Resolved, codec: Codec) -> bool:
        """Report a fault if the codec does not accept the shape of the data."""
        specs = self._specs()
        try:
            if specs is not None:
                codec.spec(self.scope["data"].spec)
        except (DiffkitError, ValueError) as error:
            fault = error if isinstance(error, DiffkitError) else refused_options(component.spec, error)
            self._report(fault, locate(str(error), component.entries))
            return False
        return True

    def _add_conditioner(self, name: str, component: Resolved) -> None:
        """Build the conditioner of a condition; report a fault if the data does not have the condition."""
        specs = self._specs()
        if specs is None or self._conditioners is None:
            self._failed.add("shape")
            return
        made = None
        if name in specs:
            self.scope["condition"] = specs[name]
            made = self.attempt(component)
            del self.scope["condition"]
        else:
            self._report(no_condition(name, specs), component.entries["name"].mark)
        if made is None:
            self._failed.add("shape")
        else:
            self._conditioners[name] = made

    def attempt(self, component: Resolved, *, meta: bool = False) -> Any:
        """Build one component; return None after a fault.

        With `meta` it is built on the meta device, without memory, unless its constructor reads values of tensors.
        """
        try:
            if meta:
                try:
                    with torch.device("meta"), _limited():
                        return self.build(component)
                except (RuntimeError, NotImplementedError) as error:
                    if not _needs_memory(error):
                        raise
            return self.build(component)
        except _Reported:
            return None

    def build(self, component: Resolved) -> Any:
        """Build one component and its nested components. Raises `_Reported` after a fault, which has its place."""
        injected = {p.target for p in component.parameters if p.role == "injected"}
        incomplete = bool((injected - self.scope.keys()) & self._failed)
        try:
            arguments = arguments_of(component, self.scope, partial(self._build_inside, component.cls))
        except PluginError as error:
            if not incomplete:
                self._report(error, component.entries["name"].mark)
            raise _Reported from error
        try:
            with kept_state(output=True) as changes:
                made = component.cls(**arguments)
            warn_of(component, changes)
        except DataError as error:
            self.data_error = error
            raise _Reported from error
        except DiffkitError as error:
            mark = locate(str(error), component.entries)
            if error.code == "DK612":
                error.fix = f"name its present directory: --set {mark.path}=DIR; {error.fix}"
            self._report(error, mark)
            raise _Reported from error
        except (ValueError, OverflowError) as error:
            self._report(refused_options(component.spec, error), locate(str(error), component.entries))
            raise _Reported from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if _needs_memory(error) and torch.get_default_device().type == "meta":
                raise
            fault = too_large(component.spec, error) if is_out_of_memory(error) else cannot_build(component.spec, error)
            self._report(fault, locate(str(error), component.entries))
            raise _Reported from error
        if (
            incomplete
            or isinstance(made, nn.Module)
            or component.spec.kind in OWN_STATE
            or any(id(value) in self._fresh for value in _flat(arguments.values()))
        ):
            self._fresh.add(id(made))
        self.built[component.path] = made
        return made

    def _build_inside(self, cls: type, inner: Resolved) -> Any:
        """Build a component that is nested in one of the class `cls`."""
        outside = self.scope
        self.scope = dict(scope_inside(cls, outside))
        try:
            return self.build(inner)
        finally:
            self.scope = outside

    def reusable(self) -> dict[str, Any]:
        """Return the objects without state by path; every assembly may share them."""
        kept = {path: made for path, made in self.built.items() if id(made) not in self._fresh}
        return kept | {RECORD: self.scope[RECORD]} if RECORD in self.scope else kept

    def _add_shape(self) -> None:
        try:
            if "shape" not in self._failed:
                known = self._predicts is None or self._predicts in (self._specs() or {})
                add_shape(self.scope, self._conditioners, self._predicts if known else None)
                self._fresh.add(id(self.scope.get(CONDITIONS)))
        except DataError as error:
            self.data_error = error
        if "shape" not in self.scope:
            self._failed.add("shape")

    def _report(self, error: DiffkitError, mark: Mark) -> None:
        error.where = error.where or mark
        self.faults.append(error)


MAX_WEIGHTS = 2_500
"""The largest number of weight tensors of a network. The largest published networks have about 2,000."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise ValueError if a network registers more than `MAX_WEIGHTS` tensors, so that it is refused in a second."""
    found = itertools.count(1)

    def register(*_: object) -> None:
        if next(found) > MAX_WEIGHTS:
            raise ValueError(f"more than {MAX_WEIGHTS} weight tensors; use fewer blocks, levels or layers")

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


class _Reported(Exception):  # noqa: N818 - control flow: the fault is recorded
    """Raised after a component could not be built and its fault was recorded."""


def _needs_memory(error: BaseException) -> bool:
    """Return whether a constructor failed because the meta device holds no numbers."""
    return isinstance(error, RuntimeError | NotImplementedError) and "meta" in str(error)


def locate(message: str, entries: Mapping[str, Node]) -> Mark:
    """Return the place of the option whose name or value is in the message, else the place of the component's name."""
    options = [(key, node) for key, node in entries.items() if key != "name"]
    named = [node for key, node in options if re.search(rf"\b{re.escape(key)}\b", message)]
    words = set(re.findall(r"[\w.+-]+", message))
    valued = [node for _, node in options if words & {str(leaf) for leaf in _leaves(node)}]
    return (named or (valued if len(valued) == 1 else []) or [entries["name"]])[0].mark


def _leaves(node: Node) -> list[object]:
    """Return the value of a scalar, or the items of a list of scalars."""
    return [item.value for item in node.value] if isinstance(node.value, list) else [node.value]


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, tuple) else (value,)


def _rank(kind: str) -> int:
    return ORDER.index(kind) if kind in ORDER else len(ORDER)


def follows_shape(kind: str) -> bool:
    """Return whether components of this kind may require the `shape`."""
    return _rank(kind) > ORDER.index("shape")


def _before(kind: str) -> tuple[str, ...]:
    return ORDER[: _rank(kind)]
