"""The error for an optional package that is not installed."""

from __future__ import annotations

from diffkit.errors import PluginError


def missing(package: str, extra: str, user: str) -> PluginError:
    """`user` needs `package`, which comes with the extra `extra` of diffkit."""
    return PluginError(
        f"{user} needs {package}, which is not installed", code="DK290", fix=f'pip install "diffkit[{extra}]"'
    )
