"""A bar on a terminal, lines in a log file, nothing in a library."""

from __future__ import annotations

import io
import time

import pytest

from diffkit.runtime.progress import Clock, Progress, ProgressBar, ProgressLines, console_progress

RECORD = {"step": 50, "loss": 0.25, "images_per_second": 1234.5, "held_out_loss": 0.5}


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_lines_appear_at_intervals_and_at_the_end() -> None:
    stream = io.StringIO()
    with ProgressLines("training", stream, every_seconds=3600.0) as lines:
        lines.start(0, 100)
        for step in (10, 20, 30):
            lines.advance(step)
            lines.log(RECORD)
        assert stream.getvalue() == ""
    expected = "training 30/100   loss 0.25   1234 images/s   held out 0.5\n"
    assert stream.getvalue() == expected
    lines.close()
    assert stream.getvalue() == expected


def test_updates_begin_at_the_first_one_and_again_if_the_total_changes() -> None:
    class Seen(Progress):
        def __init__(self) -> None:
            self.calls: list[tuple[int, ...]] = []

        def start(self, done: int, total: int) -> None:
            self.calls.append((done, total))

        def advance(self, done: int) -> None:
            self.calls.append((done,))

    seen = Seen()
    for done, total in ((0, 4), (2, 4), (2, 8), (8, 8)):
        seen.update(done, total)
    assert seen.calls == [(0, 4), (0,), (2,), (2, 8), (2,), (8,)]


def test_each_line_waits_for_the_interval() -> None:
    stream = io.StringIO()
    lines = ProgressLines("sampling", stream, every_seconds=0.05)
    lines.start(0, 3)
    lines.advance(1)
    assert stream.getvalue() == ""
    time.sleep(0.06)
    lines.advance(2)
    lines.advance(3)
    assert stream.getvalue() == "sampling 2/3\n"
    lines.close()
    assert stream.getvalue() == "sampling 2/3\nsampling 3/3\n"


@pytest.mark.parametrize("make", [ProgressLines, ProgressBar])
def test_a_closed_stream_is_no_error(make: type[ProgressLines | ProgressBar]) -> None:
    """reliability 30: `diffkit run ... | head -1`."""
    stream = Terminal()
    shown = make("training", stream, every_seconds=0.0)
    shown.start(0, 2)
    shown.advance(1)
    stream.close()
    shown.log(RECORD)
    shown.advance(2)
    shown.close()


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    bar = console_progress("training", stream=stream)
    assert isinstance(bar, ProgressBar)
    bar.start(40, 100)
    bar.advance(50)
    bar.log(RECORD)
    bar.close()
    assert "50/100" in stream.getvalue()
    assert "held out 0.5" in stream.getvalue()


def test_a_terminal_without_unicode_gets_a_bar_of_ascii() -> None:
    class Plain(Terminal):
        encoding = "ascii"

        def write(self, text: str) -> int:
            return super().write(text.encode("ascii").decode())

    stream = Plain()
    with console_progress("training", stream=stream) as bar:
        bar.start(0, 10)
        bar.advance(10)
    assert "10/10" in stream.getvalue()


def test_the_last_state_of_a_bar_is_shown() -> None:
    stream = Terminal()
    bar = ProgressBar("sampling", stream, every_seconds=3600.0)
    bar.start(0, 3)
    for done in (1, 2, 3):
        bar.advance(done)
    bar.close()
    assert "3/3" in stream.getvalue()


def test_a_log_file_gets_lines_and_silence_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(console_progress("training", stream=io.StringIO()), ProgressLines)
    silent = console_progress("training", show=False)
    assert type(silent) is Progress
    silent.start(0, 1)
    silent.advance(1)
    silent.log(RECORD)
    silent.close()
    assert capsys.readouterr() == ("", "")


def test_clocks_leave_out_pauses() -> None:
    clock = Clock()
    time.sleep(0.02)
    with clock.paused():
        time.sleep(0.2)
    assert 0.015 < clock.lap() < 0.15
    assert clock.lap() < 0.1
