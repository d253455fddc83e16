"""The version of the interface between the core and its plugins.

A plugin module states the version that it was written for, `DIFFKIT_API = 1`; the core serves the present and the
previous one. A module that states nothing is taken to be written for version 1, in which stating it became the rule:
so what it means does not change when the core moves on.
"""

from __future__ import annotations

from types import ModuleType

from ..errors import PluginError

API = 1
FIRST = 1
SERVED = tuple(range(max(FIRST, API - 1), API + 1))


def stated(module: ModuleType) -> int:
    """The version that a plugin module states; raises `PluginError` DK204 where the core does not serve it."""
    version: object = getattr(module, "DIFFKIT_API", FIRST)
    if type(version) is not int:
        raise PluginError(
            f"DIFFKIT_API of {module.__name__} is {version!r}, not a whole number",
            code="DK204",
            fix=f"write DIFFKIT_API = {API} in the plugin module",
        )
    if version in SERVED:
        return version
    served = " and ".join(str(number) for number in SERVED)
    package = module.__name__.partition(".")[0].replace("_", "-")
    fix = (
        f"pip install --upgrade diffkit, or an older {package}"
        if version > API
        else f"pip install --upgrade {package}, or an older diffkit"
    )
    raise PluginError(
        f"{module.__name__} is built for version {version} of the plugin interface; this diffkit serves {served}",
        code="DK204",
        fix=fix,
    )
