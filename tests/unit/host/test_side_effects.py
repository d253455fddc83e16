"""Plugins that change the process while they are imported: it is put back, and the plugin is named."""

from __future__ import annotations

import gc
import json
import locale
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

from diffkit import build
from diffkit.basics.grid import Trailing
from diffkit.host import LoadError, registry
from diffkit.host.process_state import SideEffectWarning, kept_state

HOOK = """
@hookimpl
def diffkit_components():
    yield Entry("schedule", "mine", "diffkit_zoo.parts:Mine", "a schedule")
"""
PUT_BACK = {
    "import torch; torch.set_default_dtype(torch.float64)": "the default dtype of torch",
    "import torch; torch.set_default_device('meta')": "the default device of torch",
    "import torch; torch.set_grad_enabled(False)": "the gradient mode of torch",
    "import torch; torch.manual_seed(1)": "the random numbers of torch",
    "import random; random.seed(1)": "the random numbers of Python",
    "import sys; sys.path.clear()": "sys.path",
    "import sys; sys.path.insert(0, '/elsewhere')": "sys.path",
    "import sys; sys.setrecursionlimit(5000)": "the recursion limit",
    "import sys; sys.stderr = None": "it replaced a standard stream",
    "import sys; sys.stdin = None": "it replaced a standard stream",
    "import os; os.chdir('/')": "the working directory",
    "import os; os.environ.pop('HOME', None); os.environ['PATH'] = ''": "the variables of the environment",
    "import gc; gc.disable()": "the garbage collector",
    "import locale; locale.setlocale(locale.LC_ALL, 'C.UTF-8')": "the locale",
    "import warnings; warnings.simplefilter('ignore')": "the warning filters",
    "import warnings; warnings.resetwarnings()": "the warning filters",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)": "the handler of SIGTERM",
}
LASTING = {
    "import torch; torch.Tensor.mean = lambda self: 7": "it replaced torch.Tensor.mean",
    "import torch; torch.randn = lambda *size: 7": "it replaced torch.randn",
    "import torch; torch.nn.functional.silu = lambda x: x": "it replaced torch.nn.functional.silu",
    "import builtins; builtins.print = lambda *a: None": "it replaced builtins.print",
}
QUIET = """
import threading, time
thread = threading.Thread(target=time.sleep, args=(3,), name="sleeper")
thread.start()
"""


def state() -> list[object]:
    return [
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
        bytes(torch.random.get_rng_state().numpy()), random.getstate(),
        list(sys.path), sys.getrecursionlimit(), sys.stdin, sys.stdout, sys.stderr, os.getcwd(), dict(os.environ),
        gc.isenabled(), locale.setlocale(locale.LC_ALL), list(warnings.filters), signal.getsignal(signal.SIGTERM),
    ]  # fmt: skip


@pytest.fixture
def mended() -> Iterator[None]:
    """Takes away the functions that a plugin replaced."""
    kept = print, torch.randn, torch.nn.functional.silu
    yield
    vars(sys.modules["builtins"])["print"], torch.randn, torch.nn.functional.silu = kept
    if "mean" in vars(torch.Tensor):
        del torch.Tensor.mean


@pytest.mark.parametrize("code", PUT_BACK)
def test_what_an_import_changes_is_put_back_and_noted(code: str, site) -> None:
    site.install("zoo", f"{code}\n{HOOK}")
    before = state()
    found = registry()
    if "/elsewhere" in code:  # moved to the end, so that it hides nothing
        assert sys.path.pop() == "/elsewhere"
    assert state() == before
    (zoo,) = [plugin for plugin in found.plugins if plugin.name == "zoo"]
    assert zoo.status == "ok"
    assert any(PUT_BACK[code] in note and "was put back" in note for note in zoo.notes), zoo.notes
    assert PUT_BACK[code] in found.why("zoo")


@pytest.mark.parametrize("code", LASTING)
def test_what_cannot_be_put_back_makes_the_plugin_broken(code: str, site, mended) -> None:
    site.install("zoo", f"{code}\n{HOOK}")
    found = registry()
    (zoo,) = [plugin for plugin in found.plugins if plugin.name == "zoo"]
    assert zoo.status == "broken"
    assert LASTING[code] in (zoo.reason or "")
    assert "-p no:zoo" in (zoo.reason or "")


@pytest.mark.parametrize("code", ["", "import warnings; warnings.filterwarnings('ignore', 'odd size')", "x = [1]"])
def test_an_ordinary_plugin_has_no_note(code: str, site) -> None:
    site.install("zoo", f"{code}\n{HOOK}")
    assert [plugin.notes for plugin in registry().plugins] == [()] * 3


def test_a_hook_for_commands_is_held_to_it_too(site) -> None:
    import click

    hook = "@hookimpl\ndef diffkit_commands(group):\n    import torch\n    torch.set_default_dtype(torch.float64)\n"
    site.install("zoo", hook)
    registry().commands(click.Group())
    assert torch.get_default_dtype() == torch.float32
    assert "default dtype" in registry().why("zoo")


@pytest.mark.parametrize("raises", ["", "raise ValueError('late')"])
def test_the_import_of_a_component_warns_and_names_its_plugin(raises: str, site) -> None:
    site.install("zoo", HOOK, parts=f"import torch\ntorch.set_default_dtype(torch.float64)\n{raises}\nclass Mine: pass")
    named = 'plugin "zoo".*diffkit_zoo.parts:Mine: it changed the default dtype'
    with pytest.raises(LoadError), pytest.warns(SideEffectWarning, match=named):
        registry().find("schedule", "mine").load()
    assert torch.get_default_dtype() == torch.float32


def test_code_that_may_draw_keeps_its_numbers() -> None:
    before = torch.random.get_rng_state()
    with kept_state() as changes:
        torch.rand(3)
    assert changes == []
    assert not torch.equal(before, torch.random.get_rng_state())


def test_a_constructor_leaves_the_output_of_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads of a program that uses the library may print at the same time."""
    seen: list[object] = []

    def recorded(self: Trailing) -> None:
        seen.extend([sys.stdout, os.fstat(1).st_ino])

    monkeypatch.setattr(Trailing, "__init__", recorded)
    wanted = [sys.stdout, os.fstat(1).st_ino]
    build("grid", "trailing")
    assert seen == wanted


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os; os.write(1, b'noise')", "ok"),
        ("import subprocess; subprocess.run(['echo', 'noise'])", "ok"),
        ("import sys; sys.stdout.close(); sys.__stdout__.close()", "closed sys.stdout"),
        ("import os; os.close(1); os.close(2)", "ok"),
        (QUIET, 'it started the thread "sleeper"'),
    ],
)
def test_standard_output_stays_json_and_the_command_ends(code: str, expected: str, site) -> None:
    site.install("zoo", f"{code}\n{HOOK}")
    done = subprocess.run(
        [sys.executable, "-c", "from diffkit.cli.main import entry; entry()", "plugins", "--json"],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": f"{site.folder}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (zoo,) = [plugin for plugin in json.loads(done.stdout) if plugin["name"] == "zoo"]
    assert expected in " ".join([zoo["status"], zoo["reason"] or "", *zoo["notes"]])
