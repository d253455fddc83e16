"""The error for an optional package that is not installed."""

from __future__ import annotations

from diffkit.errors import PluginError


def missing(package: str, extra: str, user: str) -> PluginError:
    """Return the error DK290 for a package that is not installed.

    Args:
        package: The missing package.
        extra: The extra of diffkit that installs the package.
        user: The component that requires the package, for the message.

    Returns:
        The error, to be raised by the caller.
    """
    return PluginError(
        f"{user} requires {package}, which is not installed", code="DK290", fix=f'pip install "diffkit[{extra}]"'
    )
