"""The TensorBoard tracker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.callback import Tracker, TrainResult

from .extra import missing

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


@dataclass
class TensorBoard(Tracker):
    """Scalars for TensorBoard, in `folder` of the run directory; look at them with `tensorboard --logdir runs`.

    After a resume, steps that were logged by a process that died before saving them are replaced.
    Raises PluginError DK290 without the package tensorboard.
    """

    folder: str = "tensorboard"
    _directory: Path | None = field(default=None, init=False, repr=False)
    _writer: Any = field(default=None, init=False, repr=False)  # SummaryWriter, whose module may be absent

    def __post_init__(self) -> None:
        if Path(self.folder).is_absolute() or ".." in Path(self.folder).parts:
            raise ValueError(f"folder {self.folder!r} must lie within the run directory")

    def on_start(self, directory: Path) -> None:
        _writer_class()
        self._directory = directory / self.folder

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            if self._directory is None:
                raise RuntimeError("log was called before on_start")
            self._writer = _writer_class()(str(self._directory), purge_step=step)
        for label, value in values.items():
            self._writer.add_scalar(label, value, step)

    def on_end(self, result: TrainResult | None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _writer_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise missing("tensorboard", "tensorboard", "tracker `tensorboard`") from error
    return SummaryWriter
