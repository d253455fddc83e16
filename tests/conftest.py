"""Profiles of hypothesis, marks that need a machine, the switch of slow tests, the limit of `make fast`, real runs."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from diffkit import Run

STARTED = pytest.StashKey[float]()
"""When the first test could start: the limit of `make fast` does not count imports and collection."""
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ci", max_examples=25, deadline=None, derandomize=True, suppress_health_check=QUIET)
settings.register_profile("nightly", max_examples=1000, deadline=None, suppress_health_check=QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--seconds", type=float, help="skip the tests that are not started after this time")


def pytest_runtest_setup(item: pytest.Item) -> None:
    limit = item.config.getoption("--seconds")
    if limit is not None and time.monotonic() - item.config.stash[STARTED] > limit:
        pytest.skip(f"not started within {limit:g} seconds; `make test` runs it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {}
    if not config.getoption("--slow"):
        reasons["slow"] = "slow: run with --slow"
    if not os.environ.get("DIFFKIT_DATA") or not Path(os.environ["DIFFKIT_DATA"]).is_dir():
        reasons["data"] = "data: set DIFFKIT_DATA to a folder with the image sets"
    if shutil.which("chromium") is None:
        reasons["browser"] = "browser: chromium is not installed"
    for item in items:
        for mark, reason in reasons.items():
            if item.get_closest_marker(mark) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("gpu") is not None:
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device"))
        group = item.get_closest_marker("xdist_group")
        if group is not None and config.getoption("loadgroup", False) and hasattr(item, "_id"):
            # pytest-xdist 3.8 reads the group from the name, and sets an attribute that pytest 9.2 no longer has.
            item._id = type(item._id).parse(f"{item.nodeid}@{group.args[0]}")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave the modules and tests, half a million objects, out of each collection of garbage."""
    gc.collect()
    gc.freeze()
    session.config.stash[STARTED] = time.monotonic()


@pytest.fixture(scope="session")
def real_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Finished runs of "points" and of "images", see tests/real_run.py; tests leave them as they are."""
    place = Path(__file__).with_name("real_run.py")
    spec = importlib.util.spec_from_file_location("real_run", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {kind: module.make_run(kind, tmp_path_factory.mktemp(kind)) for kind in ("points", "images")}
