"""A validated recipe: its sections, the text and places it came from, and what is noteworthy about it."""

from __future__ import annotations

from pydantic import PrivateAttr

from ..errors import DataError, RecipeError
from .check import check
from .load import raise_all
from .requires import check_requires
from .resolve import Resolver
from .spec import Spec
from .tree import Node


class Recipe(Spec):
    """What a recipe says, every value valid; made by `load_recipe`.

    `text` is the recipe as it was given, `root` its tree under the overrides, `warnings` are faults that do not
    forbid a run, and `data_error` says why the data could not be looked at, where shapes are therefore unchecked.
    """

    _text: str = PrivateAttr(default="")
    _root: Node | None = PrivateAttr(default=None)
    _warnings: tuple[RecipeError, ...] = PrivateAttr(default=())
    _data_error: DataError | None = PrivateAttr(default=None)

    @property
    def text(self) -> str:
        """The recipe as it was given, without overrides."""
        return self._text

    @property
    def root(self) -> Node | None:
        """The tree with its places, under the overrides."""
        return self._root

    @property
    def warnings(self) -> tuple[RecipeError, ...]:
        """What is allowed but probably not meant."""
        return self._warnings

    @property
    def data_error(self) -> DataError | None:
        """Why the data could not be looked at."""
        return self._data_error


def validate(text: str, root: Node) -> Recipe:
    """The recipe in `root`. Raises RecipeError with all its faults."""
    resolver = Resolver(root)
    recipe = resolver.read(Recipe)
    found, warnings = check(resolver)
    raise_all([*resolver.faults, *check_requires(resolver), *found], f"{root.mark.file} is not a valid recipe")
    assert recipe is not None
    recipe._text, recipe._root = text, root
    recipe._warnings, recipe._data_error = tuple(warnings), resolver.data_error
    return recipe
