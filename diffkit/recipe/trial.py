"""Trial construction: whether a component can be built, without memory for weights, and which option is to blame."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import Mark
from .construct import construct
from .spec import Chosen
from .tree import Node


def tried(chosen: Chosen, scope: Mapping[str, object], objects: Mapping[str, object]) -> Any:
    """The object; a network on the meta device, unless its constructor must read numbers. No generator moves."""
    with torch.random.fork_rng(devices=[]):
        if chosen.kind != "network":
            return construct(chosen, scope, objects)
        try:
            with torch.device("meta"):
                return construct(chosen, scope, objects)
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise
        return construct(chosen, scope, objects)


def blamed(message: str, entries: Mapping[str, Node]) -> Mark:
    """The option that a message speaks of, by its name or else by its value; else the name of the component."""
    options = [(key, node) for key, node in entries.items() if key != "name"]
    named = [node for key, node in options if re.search(rf"\b{re.escape(key)}\b", message)]
    words = set(re.findall(r"[\w.+-]+", message))
    valued = [node for _, node in options if words & {str(leaf) for leaf in _leaves(node)}]
    return (named or (valued if len(valued) == 1 else []) or [entries["name"]])[0].mark


def _leaves(node: Node) -> list[object]:
    """The value of a scalar, or the items of a list of scalars."""
    return [item.value for item in node.value] if isinstance(node.value, list) else [node.value]
