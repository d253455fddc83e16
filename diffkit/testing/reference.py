"""`law_reference`: the formula of a component, written a second time next to its class, for a law to compare it with.

It is a method whose parameters choose, by their names, among the values that the law of the kind provides; or a table
of points, which applies to the default options; or a list of pairs (options, table). docs/how-to/laws.md has the form
and an example for each kind.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from diffkit.level import Level

from .case import Case, rebuilt
from .law_registry import NotApplicable
from .variants import for_each, variants

MISSING = "no law_reference, so its formula is not tested; docs/how-to/laws.md shows how to state it in one line"
"""The reason that `check` shows for a component of these kinds without a reference."""
STATEMENT = "the results are those of the component's law_reference"
SOURCE = "the law_reference of the component"


def reference_of(case: Case) -> Any:
    """Return the `law_reference` of a component: a table, or a function that is bound to the instance.

    Args:
        case: the component.

    Returns:
        The reference, as the class declares it.

    Raises:
        NotApplicable: there is none, or it is a table and the options are not the defaults.
    """
    component = case.component
    found = getattr(component, "law_reference", None)
    if found is None:
        raise NotApplicable(MISSING)
    if callable(found):
        return found
    usual: tuple[Mapping[str, Any], ...] = ({}, getattr(component, "law_base", {}), {"example": "law_example"})
    for options, table in _tables(found):
        if any(case.options == {**base, **options} for base in usual):
            return table
    raise NotApplicable("a table applies to the default options, or to those that it states")


def _tables(stated: Any) -> list[tuple[Mapping[str, Any], Any]]:
    """Return the tables of a reference with the options of each: pairs (options, table), or one for the defaults."""
    pairs = isinstance(stated, list | tuple) and all(
        isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], Mapping) for one in stated
    )
    return list(stated) if pairs else [({}, stated)]


def _stated(case: Case) -> Iterator[Case]:
    """Yield the cases that a reference applies to: each value of the options for a formula, those of each table."""
    found = getattr(case.component, "law_reference", None)
    if callable(found):
        yield from variants(case)
        return
    yield case
    if case.options in ({}, getattr(case.component, "law_base", {})):
        for options, _ in _tables(found):
            if options:
                yield replace(case, component=rebuilt(case, **options), options={**case.options, **options})


for_variants = for_each(_stated)
"""A decorator that repeats a law that compares with a reference at other values of each option, one at a time."""


@functools.cache
def _names(code: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(code).parameters)


def names_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the parameters of a reference, without self."""
    bound = getattr(function, "__self__", None) is not None
    return _names(getattr(function, "__func__", function))[bound:]


def evaluate(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Call a reference with those of the values that its parameters name.

    Args:
        function: the reference.
        values: all values that the law provides, by name.

    Returns:
        The result of the reference.

    Raises:
        TypeError: a parameter has a name that the law does not provide.
    """
    names = names_of(function)
    unknown = [name for name in names if name not in values]
    if unknown:
        raise TypeError(f"law_reference has the parameter {unknown[0]}; allowed are {', '.join(values)}")
    return function(**{name: values[name] for name in names})


def level_values(level: Level) -> dict[str, Any]:
    """Return the names that a reference may use for a level, as floats, computed from alpha and sigma only."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    half = math.log(alpha / sigma) if alpha > 0 and sigma > 0 else math.inf if alpha > 0 else -math.inf
    return {
        "level": Level(alpha, sigma),
        "alpha": alpha,
        "sigma": sigma,
        "snr": (alpha / sigma) ** 2 if sigma > 0 else math.inf,
        "half_logsnr": half,
        "logsnr": 2.0 * half,
        "ratio": sigma / alpha if alpha > 0 else math.inf,
    }


def expit(x: float) -> float:
    """Return 1 / (1 + e^-x)."""
    return 1.0 / (1.0 + math.exp(-x)) if x > 0 else math.exp(x) / (1.0 + math.exp(x))
