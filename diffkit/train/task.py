"""What is trained on what: plain objects, from a recipe or made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass

from torch import nn

from ..codec import Codec, Identity
from ..data import Augmentation, Data
from ..denoiser import Model
from ..objective import Objective

IDENTITY = Identity()


@dataclass(frozen=True)
class Task:
    """A model, the objective that trains it, and the data; `label_dropout` is the share of labels that become the null
    class."""

    model: Model
    objective: Objective
    data: Data
    codec: Codec = IDENTITY
    augment: tuple[Augmentation, ...] = ()
    label_dropout: float = 0.0
    seed: int = 0

    def learned(self) -> nn.ModuleDict:
        """Every module but the network that some component is or holds: trained where it has parameters, and saved.

        Keys are paths with slashes, such as `objective/times`.
        """
        parts: list[tuple[str, object]] = [
            ("objective", self.objective),
            ("parameterization", self.model.parameterization),
            ("schedule", self.model.schedule),
            ("codec", self.codec),
            *((f"augment{index}", augmentation) for index, augmentation in enumerate(self.augment)),
        ]
        found: dict[int, tuple[str, nn.Module]] = {}
        for path, part in parts:
            for at, module in _modules(part, path):
                if not any(module is inner for inner in self.model.network.modules()):
                    found.setdefault(id(module), (at, module))
        return nn.ModuleDict(dict(found.values()))


def _modules(part: object, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules in a component and in the components it was made with."""
    if isinstance(part, nn.Module):
        yield path, part
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from _modules(getattr(part, field.name), f"{path}/{field.name}")
    elif isinstance(part, (tuple, list)):
        for index, item in enumerate(part):
            yield from _modules(item, f"{path}/{index}")
