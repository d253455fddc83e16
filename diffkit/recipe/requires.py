"""`requires:` the plugins that a recipe needs, with their versions: `requires: {diffkit-edm: ">=0.1,<1"}`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..errors import DiffkitError, PluginError, RecipeError
from ..host import registry
from .resolve import Resolver
from .words import nearest, quote

CLAUSE = re.compile(r"\s*(==|!=|>=|<=|~=|>|<)\s*v?([0-9]+(?:\.[0-9]+)*)\s*\Z", re.ASCII)
RELEASE = re.compile(r"v?([0-9]+(?:\.[0-9]+)*)(.*)\Z", re.ASCII)
Version = tuple[tuple[int, ...], bool]


def check_requires(resolver: Resolver) -> Iterator[DiffkitError]:
    """What of `requires` is not met, or cannot be understood."""
    required: dict[str, str] = resolver.values.get("requires", {})
    for name, wanted in required.items():
        node = resolver.root.at("requires")
        entry = node.child(name) if node else None
        mark = entry.mark if entry else resolver.root.mark
        if not all(CLAUSE.match(clause) for clause in wanted.split(",")):
            message = f"{quote(wanted)} is not a range of versions"
            yield RecipeError(message, code="DK108", where=mark, fix='write a range such as ">=0.1,<1"')
            continue
        plugins = [plugin for plugin in registry().plugins if plugin.answers_to(name)]
        if not plugins:
            near = nearest(name, [n for p in registry().plugins for n in (p.distribution, p.name) if n])
            hint = f'did you mean "{near}"?' if near else None
            message = f"this recipe requires {name} {wanted}, which is not installed"
            yield PluginError(message, code="DK108", where=mark, hint=hint, fix=f'pip install "{name}{wanted}"')
        for plugin in plugins[:1]:
            if plugin.status != "ok":
                message = f"this recipe requires {name}, which is {plugin.status} ({plugin.reason})"
                yield PluginError(message, code="DK108", where=mark, fix=f"diffkit plugins --why {plugin.name}")
            elif plugin.version is not None and not satisfies(plugin.version, wanted):
                message = f"this recipe requires {name} {wanted}, {plugin.version} is installed"
                yield PluginError(message, code="DK108", where=mark, fix=f'pip install "{name}{wanted}"')


def satisfies(version: str, wanted: str) -> bool:
    """Whether `version` lies in the range `wanted`, comma-separated clauses of release numbers (PEP 440 without epochs
    and labels: a pre-release lies just before its release, everything else counts as the release)."""
    have = _version(version)
    return all(_holds(have, *match.groups()) for clause in wanted.split(",") if (match := CLAUSE.match(clause)))


def _version(text: str) -> Version:
    match = RELEASE.match(text.strip())
    if match is None:
        return (), False
    final = not re.match(r"[-_.]?(a|b|c|rc|alpha|beta|pre|dev)", match[2])
    return _numbers(match[1]), final


def _numbers(text: str) -> tuple[int, ...]:
    numbers = [int(part[:18]) for part in text.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _holds(have: Version, sign: str, text: str) -> bool:
    want: Version = (_numbers(text), True)
    if sign == "~=":
        stem = tuple(int(part[:18]) for part in text.split("."))[:-1]
        padded = (*have[0], *(0,) * len(stem))
        return have >= want and padded[: len(stem)] == stem
    if sign == "<":
        return have < (want[0], False)
    tests = {"==": have == want, "!=": have != want, ">=": have >= want, "<=": have <= want, ">": have > want}
    return tests[sign]
