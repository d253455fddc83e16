"""Inverse problems: restore a picture from a measurement with a trained model as the prior."""

from .restoring import Restored, restore

__all__ = ["Restored", "restore"]
