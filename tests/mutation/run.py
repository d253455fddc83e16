"""Applies each fault in a forked process and runs the laws or the tests of what it breaks.

One parent imports torch and the other large libraries once; each child imports diffkit afresh, with one file read as
if it were edited. The parent itself imports the laws before it starts the children whose file no law imports. Prints
one JSON line for each fault: its name and the law or the test that caught it, or null.
`--tests` chooses the faults whose targets are tests, in place of those whose targets are laws, and `--slow` includes
the slow ones.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = (
    *("torch", "pydantic.dataclasses", "pydantic.type_adapter", "annotated_types", "pluggy", "numpy", "PIL.Image"),
    *("click", "yaml", "hypothesis", "lazy_loader", "safetensors.torch", "sklearn.datasets"),
)
SECONDS = 240


def load_faults() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parent))
    return importlib.import_module("faults")


def edit(file: Path, old: str, new: str) -> None:
    """Lets this process read `file` with the edit, and no compiled copy of it."""
    source = file.read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {file}"
    changed = source.replace(old, new).encode()
    original = SourceFileLoader.get_data

    def get_data(self: SourceFileLoader, path: str) -> bytes:
        if Path(path) == file:
            return changed
        if path.endswith(".pyc") and Path(path).name.startswith(f"{file.stem}."):
            raise OSError(path)
        return original(self, path)

    sys.dont_write_bytecode = True
    SourceFileLoader.get_data = get_data  # type: ignore[method-assign]


def failed_test(targets: tuple[str, ...]) -> str | None:
    """The first test of the targets, which are paths or node ids of pytest, that fails."""
    import pytest

    class Failures:
        first: str | None = None

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed and self.first is None:
                self.first = report.nodeid

    failures = Failures()
    arguments = ["-x", "--assert=plain", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    arguments += ["--slow"] if targets[0].startswith("tests/") else []  # tests of plugins alone are all tried
    code = pytest.main([*arguments, *(str(ROOT / target) for target in targets)], plugins=[failures])
    assert code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), f"pytest ended with {code!r}"
    return failures.first


def broken_law(targets: tuple[str, ...]) -> str | None:
    """The first law that any of the targets breaks; of `kind/name:law` only this law is tried."""
    from diffkit.host import registry
    from diffkit.testing.case import build_cases
    from diffkit.testing.engine import EMA, Row, check_cases, check_ema

    for target in targets:
        component, _, law = target.partition(":")
        kind, _, name = component.partition("/")
        only = (law,) if law else ()
        if kind == EMA:
            rows = iter(row for row in check_ema() if not only or row.law in only)
        else:
            entry = registry().find(kind, name)
            where = Row(component, entry.plugin.name, "", "", None, None, "n/a")
            rows = check_cases(kind, list(build_cases(kind, name, entry.load())), where, only)
        for row in rows:
            if row.verdict == "fail":
                return row.law
    return None


def child(fault: object, out: int) -> None:
    import torch

    torch.set_num_threads(1)
    signal.alarm(SECONDS)
    start = time.process_time()
    try:
        edit(ROOT / fault.file, fault.old, fault.new)
        caught, error = (failed_test if fault.by_tests else broken_law)(fault.targets), ""
    except Exception:  # noqa: BLE001 - reported to the parent
        caught, error = None, traceback.format_exc()
    answer = {"name": fault.name, "caught": caught, "error": error, "seconds": time.process_time() - start}
    os.write(out, (json.dumps(answer) + "\n").encode())


def main() -> None:
    words, slow = [word for word in sys.argv[1:] if not word.startswith("--")], "--slow" in sys.argv
    faults = [fault for fault in load_faults().FAULTS if fault.by_tests == ("--tests" in sys.argv)]
    faults = [fault for fault in faults if words or slow or fault.by_tests or not fault.slow]
    if words:
        faults = [fault for fault in faults if any(word in fault.name or word in fault.file for word in words)]
    sys.path[:0] = [str(ROOT), *map(str, ROOT.glob("plugins/*/src"))]  # the edited files, wherever diffkit is installed
    for library in LIBRARIES:
        importlib.import_module(library)
    entry_points(group="diffkit")  # what was read of installed packages is kept for the children
    assert not any(name.partition(".")[0] == "diffkit" for name in sys.modules)
    gc.freeze()  # a collection in a child would write to, and so copy, every object of the libraries
    early = files_of_laws()
    check_all([fault for fault in faults if fault.by_tests or ROOT / fault.file in early])
    late = [fault for fault in faults if not fault.by_tests and ROOT / fault.file not in early]
    if late:
        import_laws()
        gc.freeze()
        check_all(late)


def import_laws() -> None:
    """Imports what every check of a law imports, the laws of all plugins among it."""
    importlib.import_module("diffkit.testing.engine")
    importlib.import_module("diffkit.host").registry()
    importlib.import_module("diffkit.testing.law_registry").laws()


def files_of_laws() -> set[Path]:
    """The files that `import_laws` imports, found in a process of its own."""
    source, sink = os.pipe()
    if not os.fork():
        import_laws()
        names = [str(module.__file__) for name, module in sys.modules.items() if name.startswith("diffkit")]
        os.write(sink, "\n".join(names).encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as pipe:
        found = {Path(line) for line in pipe.read().splitlines()}
    assert found, "the laws cannot be imported"
    os.wait()
    return found


def check_all(faults: list[object]) -> None:
    """Checks faults, two at a time on two cores, and prints the answers."""
    waiting, running = list(faults), {}
    silent = os.open(os.devnull, os.O_WRONLY)
    jobs = max(1, len(os.sched_getaffinity(0)))
    while waiting or running:
        while waiting and len(running) < jobs:
            fault = waiting.pop(0)
            source, sink = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(source)
                os.dup2(silent, 1)
                try:
                    child(fault, sink)
                finally:
                    os._exit(0)
            os.close(sink)
            running[pid] = (fault, source)
        pid, _ = os.wait()
        fault, source = running.pop(pid)
        with os.fdopen(source) as pipe:
            line = pipe.read().strip()
        empty = {"name": fault.name, "caught": None, "error": "no answer (crashed or too slow)", "seconds": SECONDS}
        print(line or json.dumps(empty), flush=True)


if __name__ == "__main__":
    main()
