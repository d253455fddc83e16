"""The training step of diffkit as a contestant that any checkout can build, from its own contestants.py."""

from __future__ import annotations

from typing import Any

from contestants import BUILDERS, Size, Switches
from turns import Work


def ours(*size: Any) -> Work:
    """The whole step and the update of diffkit with the U-Net of `Size(*size)`, in fp32."""
    step, update = BUILDERS["diffkit"](Size(*size), Switches())
    return {"step": step, "update": update}
