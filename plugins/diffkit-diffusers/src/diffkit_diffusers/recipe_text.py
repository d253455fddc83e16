"""Recipes as text: one line for each key, its value as JSON, which YAML contains."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def recipe_text(title: str, sections: Mapping[str, Any]) -> str:
    """A recipe with a comment on top."""
    head = "".join(f"# {line}\n" for line in title.splitlines())
    return head + "".join(f"{key}: {json.dumps(value, allow_nan=False)}\n" for key, value in sections.items())


def name_of(path: Path) -> str:
    """A name for the recipe of the run in `path`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).strip("-._")[:64] or "imported"


def adopted(name: str, data: Mapping[str, Any], model: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a recipe for weights from elsewhere; `model` holds schedule, parameterization and sample."""
    return {
        "name": name,
        "data": data,
        "schedule": model["schedule"],
        "parameterization": model["parameterization"],
        "network": network,
        "train": {"steps": 0, "ema": []},
        "sample": {**model["sample"], "count": 16},
    }
