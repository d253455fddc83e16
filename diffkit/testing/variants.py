"""Other values of options: the cases of a component in which one option differs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from diffkit.recipe.signature import Parameter, component_parameters

from .case import Case, rebuilt, shown
from .law_registry import Check, LawResult, NotApplicable

MOST_VALUES = 2
"""Values of one option with which a formula is compared, besides the default."""


def variants(case: Case) -> Iterator[Case]:
    """Yield a case, and cases in which one option has another value; the case alone if it cannot be built again."""
    yield case
    cls: type = type(case.component)
    for parameter in component_parameters(cls, case.kind):
        if parameter.role != "option":
            continue
        made = 0
        for value in others(parameter, getattr(case.component, parameter.name, parameter.default)):
            other = with_option(case, parameter.name, value)
            if other is not None:
                yield other
                made += 1
            if made == MOST_VALUES:
                break


def in_turn(case: Case, result: LawResult, cases: Iterable[Case]) -> Iterator[Case]:
    """Yield variants of a case; each error that is noted meanwhile names the options in which the variant differs.

    Args:
        case: the case.
        result: receives the errors.
        cases: its variants.

    Yields:
        Each variant.
    """
    for one in cases:
        changed = {name: value for name, value in one.options.items() if case.options.get(name) is not value}
        listed = ", ".join(f"{name} = {shown(value)}" for name, value in changed.items())
        result.options = f"with {listed}: " if listed else ""
        yield one
    result.options = ""


def for_each(cases: Callable[[Case], Iterable[Case]]) -> Callable[[Check], Check]:
    """Make a law check other cases too; it does not apply if it applies to none of them.

    Args:
        cases: returns the case, followed by the others.

    Returns:
        A decorator of the function of a law.
    """

    def decorate(check: Check) -> Check:
        @functools.wraps(check)
        def each(case: Case, result: LawResult) -> None:
            reasons = []
            for one in in_turn(case, result, cases(case)):
                try:
                    check(one, result)
                except NotApplicable as reason:
                    reasons.append(reason)
            if reasons and not result.checks:
                raise reasons[0]

        return each

    return decorate


def for_options(check: Check) -> Check:
    """Make a law that holds for every value of the options check other values too, one at a time."""
    return for_each(variants)(check)


def with_option(case: Case, name: str, value: Any) -> Case | None:
    """Return the case with another value of an option, or None if the component refuses it.

    Args:
        case: the case.
        name: the name of the option.
        value: its value.

    Returns:
        The case with another instance.
    """
    try:
        made = rebuilt(case, **{name: value})
    except Exception:  # noqa: BLE001 - a constructor may refuse a value with any error
        return None
    return replace(case, component=made, options={**case.options, name: value})


def others(parameter: Parameter, current: Any) -> list[Any]:
    """Return values that the annotation of an option allows, near the current one and of every size."""
    found: list[Any] = []
    for choice in _choices(parameter.annotation):
        found.append(choice)
    for one in (current, *([1.0, 1] if current is None else [])):
        if isinstance(one, bool):
            found.append(not one)
        elif isinstance(one, int | float):
            whole = isinstance(one, int)
            scaled = [one * factor for factor in (2, 3)] + ([] if whole else [one * f for f in (0.5, 0.9, 0.1)])
            found += [*scaled, one + 1, one - 1, *((1, 2, 3, 5, 10) if whole else (0.0, 0.1, 0.5, 1.0, 2.0, -0.5))]
        elif isinstance(one, tuple) and one and all(isinstance(part, int | float) for part in one):
            found += [tuple(part * 2 for part in one), tuple(part * 0.5 for part in one), one[:-1], (*one, one[-1])]
            found += [(*one[:k], 0.5 * one[k], *one[k + 1 :]) for k in range(len(one))]
    return [value for value in found if value != current and _allowed(parameter, value)]


def _choices(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _choices(part)


def _allowed(parameter: Parameter, value: Any) -> bool:
    try:
        parameter.adapter.validate_python(value)
    except ValidationError:
        return False
    return True
