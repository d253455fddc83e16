"""What the loop calls out to; each is a plain function, and none of them can disturb training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..denoiser import Model
from .progress import Progress, Silent

if TYPE_CHECKING:
    from .loop import Trainer

Record = Mapping[str, float]


def _log(record: Record) -> None:
    """Keep nothing."""


def _save(trainer: Trainer) -> None:
    """Save nothing."""


def _preview(step: int, model: Model) -> None:
    """Draw nothing."""


def _event(name: str, fields: Mapping[str, Any]) -> None:
    """Note nothing."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Hooks:
    """`log(record)` at log points; `save(trainer)` at checkpoints, at the end and when stopped; `preview(step, model)`
    with the first average at `sample_every`; `stop()` is asked between steps; `event(name, fields)` is told what is
    worth a note: `small-data` where a batch holds examples twice.

    All are called on the main rank only, but for `stop`.
    """

    log: Callable[[Record], None] = _log
    save: Callable[[Trainer], None] = _save
    preview: Callable[[int, Model], None] = _preview
    stop: Callable[[], bool] = _never
    event: Callable[[str, Mapping[str, Any]], None] = _event
    progress: Progress = field(default_factory=Silent)
