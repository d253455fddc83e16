"""Headless Chromium over its debugging pipe, with the standard library alone."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from diffkit import Run
from diffkit.report import ReportInputs, build_report
from diffkit.runs.reporting import collect

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Chromium wants its commands on descriptor 3 and answers on 4; subprocess cannot place descriptors, this can.
PLACE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Chromium:
    """One browser with one tab; `events` are all messages of the protocol that answer no command."""

    def __init__(self, profile: Path) -> None:
        inner_read, self._write = os.pipe()
        self._read, inner_write = os.pipe()
        inner = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (inner_read, inner_write)]
        command = [sys.executable, "-c", PLACE, *map(str, inner), str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [*command, "about:blank"], pass_fds=inner, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for fd in (inner_read, inner_write, *inner):
            os.close(fd)
        self._count, self._buffer, self._session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def wait(self, method: str) -> None:
        """Until an event of this name has come."""
        while not any(event["method"] == method for event in self.events):
            self._receive()

    def open(self, address: str, width: int, height: int = 900, scheme: str = "light") -> None:
        """Show the page at a viewport width, as a phone below 600 pixels; `events` starts afresh."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1 if width > 600 else 2,
            mobile=width <= 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=address)
        self.wait("Page.loadEventFired")
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script: str) -> Any:
        """The value of an expression of the page's script, promises awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        """End the browser."""
        self._session = None
        try:
            self.call("Browser.close")
        except (OSError, EOFError):
            self._process.kill()
        self._process.wait(timeout=20)
        os.close(self._read)
        os.close(self._write)

    def _receive(self, seconds: float = 60.0) -> dict[str, Any]:
        """The next message; those that answer nothing are kept in `events`."""
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise EOFError("Chromium has gone")
            self._buffer += piece
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(raw)
        if "method" in message:
            self.events.append(message)
        return message


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A running browser with a fresh profile; skips where none is installed."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH (Debian: apt install chromium)")
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def real_inputs(real_runs: Mapping[str, Run]) -> dict[str, ReportInputs]:
    """What the reports of the real runs show."""
    return {kind: collect(run.directory, run.assembly) for kind, run in real_runs.items()}


@pytest.fixture(scope="session")
def write_report(
    real_inputs: Mapping[str, ReportInputs], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """The file: address of the report of a real run of a kind."""

    def write(kind: str) -> str:
        path = tmp_path_factory.mktemp("report") / f"{kind}.html"
        path.write_text(build_report(real_inputs[kind]), encoding="utf-8")
        return path.as_uri()

    return write
