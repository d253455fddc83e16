"""The decorator `attribute`, which declares the attributes of an interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builtins import property as attribute
else:

    class attribute:  # noqa: N801 - used as a decorator, like `property`
        """Declare an attribute with a default that a subclass may replace by a value, a field or a property.

        The decorated function returns the default, a constant. Type checkers treat the attribute as a read-only
        property, so that all three replacements are legal. The default can also be read from the class. A module or
        parameter that an `nn.Module` registers under the name replaces it as well.
        """

        def __init__(self, default: Any) -> None:
            self.default, self.__doc__ = default(None), default.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __get__(self, instance: object, owner: type | None = None) -> Any:
            own = getattr(instance, "__dict__", {})
            registered = (own.get(table, {}) for table in ("_modules", "_parameters"))
            return next((found[self.name] for found in registered if self.name in found), self.default)


__all__ = ["attribute"]
