"""Inverse problems: restore a picture from a measurement with a trained model as the prior.

The names are imported when they are used, so that the command line starts without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .restoring import Restored as Restored, restore as restore

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"restoring": ["Restored", "restore"]})
