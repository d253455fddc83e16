"""Options of foreign configurations: each one is carried over, or refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

IGNORABLE = "pass --ignore NAME to import without an option; the results then differ from those of diffusers"


def defaults_of(foreign_class: type) -> dict[str, Any]:
    """Return the options of a class of diffusers with their defaults in the installed version."""
    parameters = inspect.signature(foreign_class).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


def options_in(config: Mapping[str, Any], ignore: Collection[str]) -> dict[str, Any]:
    """Return the options that diffusers reads from a configuration, without those to `ignore`.

    Names with an underscore describe the file. Options in `_use_default_values` were not set by the author of the
    file, so diffusers gives them the defaults of the installed version.
    """
    unset = config.get("_use_default_values") or ()
    return {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and name not in ignore and not (isinstance(unset, list) and name in unset)
    }


def unknown_notes(names: Collection[str], known: Collection[str]) -> list[str]:
    """Return one note for each name that is not `known`, such as an option of a later version."""
    return [f"{name[:64]}: this option is unknown to diffkit" for name in names if name not in known]


def notes_of(error: ValidationError) -> list[str]:
    """Return one note for each option that pydantic rejects, with the reason; at most 8."""
    found = error.errors(include_url=False, include_context=False)[:8]
    return [f"{'.'.join(map(str, one['loc'])) or 'config'}: {one['msg']}"[:240] for one in found]
