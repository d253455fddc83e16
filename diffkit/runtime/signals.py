"""Stop signals become a flag that loops read between steps, so that a checkpoint is saved at a step boundary."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType


class SecondSignalError(SystemExit):
    """Raised by a second signal: the process ends at once, with the exit code 128 + the number of the signal."""


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# If a scheduler signals every process of a job and a launcher forwards the signal, it arrives twice at once.
_ECHO_SECONDS = 0.1


class StopSignals:
    """Inside `with StopSignals() as stop:` the first SIGTERM or SIGINT (Ctrl-C) only sets `stop.requested`.

    A second signal raises SecondSignalError, a SystemExit of code 143 or 130. A third signal ends the process without
    any cleanup. Processes that are forked inside ignore both signals. The previous handlers are restored at the end.
    Outside the main thread no handler is installed.

    Args:
        install: install the handlers, which affects the whole process. Default: True.
    """

    def __init__(self, install: bool = True) -> None:
        self._install = install
        self.received: signal.Signals | None = None
        self._count = 0
        self._at = 0.0
        self._process = os.getpid()
        self._before: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        """Whether a stop signal arrived, so that the loop saves and stops at the next step boundary."""
        return self.received is not None

    def __enter__(self) -> StopSignals:
        self._process = os.getpid()
        if self._install and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        received, now = signal.Signals(number), time.monotonic()
        if self._count and received == self.received and now - self._at < _ECHO_SECONDS:
            return
        self._count += 1
        self._at = now
        if self._count == 1:
            self.received = received
            with contextlib.suppress(OSError):  # a closed terminal is a frequent cause of the signal
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _NOTE.format(received.name).encode())
        elif self._count == 2:
            raise SecondSignalError(128 + number)
        else:
            os._exit(128 + number)


_NOTE = "\n{}: saving and stopping after this step; a second signal stops now, without saving\n"


@contextlib.contextmanager
def block_stop_signals() -> Iterator[None]:
    """Block SIGTERM and SIGINT, so that child processes that start inside inherit the mask.

    A child unblocks them when it calls `ignore_stop_signals`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """Ignore SIGTERM and SIGINT in this process, so that data workers outlive a signal to the process group."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # this also discards pending signals
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
