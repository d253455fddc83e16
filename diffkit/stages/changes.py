"""What changed between two recipes or two environments, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping


def difference(old: object, new: object, path: str = "") -> list[str]:
    """Where two plain values differ, a line each: `train.steps: 100 -> 200`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in [*old, *(key for key in new if key not in old)]:
            below = f"{path}.{key}" if path else str(key)
            if key not in new:
                lines.append(f"{below}: {_shown(old[key])} -> (absent)")
            elif key not in old:
                lines.append(f"{below}: (absent) -> {_shown(new[key])}")
            else:
                lines += difference(old[key], new[key], below)
        return lines
    same = old == new and isinstance(old, bool) == isinstance(new, bool)
    return [] if same else [f"{path}: {_shown(old)} -> {_shown(new)}"]


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
