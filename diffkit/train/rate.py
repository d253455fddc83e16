"""The learning rate: warm-up, then decay, in optimizer steps."""

from __future__ import annotations

import math

from .settings import Settings


def rate(settings: Settings, step: int) -> float:
    """The learning rate of the update that follows `step` updates.

    During warm-up lr (step + 1) / warmup; then lr (end + (1 - end) f(u)), where u runs from 0 at the end of the
    warm-up to 1 at the last step, and f(u) is 1, 1 - u or (1 + cos(pi u)) / 2.
    """
    lr, decay, done = settings.optimizer.lr, settings.schedule, step + 1
    if done < settings.warmup:
        return lr * done / settings.warmup
    u = min(1.0, (done - settings.warmup) / max(1, settings.steps - settings.warmup))
    if decay.name == "constant":
        return lr
    fall = 1.0 - u if decay.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * u))
    return lr * (decay.end + (1.0 - decay.end) * fall)
