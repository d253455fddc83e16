"""Freed memory that the process keeps: told by counting the pages that the system has to bring."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

PROGRAM = """
import resource
from diffkit.runtime.memory import keep_freed_memory

{call}
def fault() -> None:
    parts = [bytearray(4 << 20) for _ in range(8)] + [bytearray(48 << 20)]  # malloc, as the tensors of torch

for _ in range(4):
    fault()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fault()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str, **environment: str) -> int:
    """Pages that five rounds of 80 MB cost after four rounds of the same."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)],
        env={name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ended.stdout)


def test_freed_memory_is_kept() -> None:
    pages = 5 * 80 * 256  # of 4 KiB
    assert faults("") > pages / 2
    assert faults("keep_freed_memory()") < pages / 5  # a block of 48 MB may find its place late, once


def test_an_environment_that_tunes_malloc_has_its_way() -> None:
    assert faults("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072") > 1000


def test_a_library_call_changes_nothing() -> None:
    """Only the command line program changes what holds for the whole process."""
    assert faults("import diffkit.runs.pipeline, diffkit.train.trainer, diffkit.storage.lock") > 1000


def test_the_command_line_program_keeps_freed_memory() -> None:
    assert faults("from diffkit.cli.main import configure_process; configure_process()") < 5 * 80 * 256 / 5
