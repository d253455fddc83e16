"""Hostile recipes (reliability.md, row 23): every one is refused within a second and little memory, and no file is
written, no module imported, no process or socket opened on its account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

GOOD = """\
name: points
data: {name: gaussian, mean: [0, 0]}
schedule: {name: linear, steps: 10, beta_end: 0.6}
parameterization: eps
network: {name: mlp, width: 8, depth: 1}
train: {steps: 10}
"""

STRINGS = (
    "os:system", "os.system", "builtins.eval", "diffkit.ddpm.unet:UNet", "torch.load", "subprocess:Popen", "../unet",
    "ddpm/../unet", "/etc/passwd", "${HOME}", "${oc.env:HOME}", "$(touch pwned)", "`touch pwned`", "{{ 7*7 }}",
    "%(name)s", "__import__('os').system('touch pwned')", "pickle:loads", "file:///etc/passwd", "http://127.0.0.1/x",
    "unet\\0", "unet\\x1b[31m", "u" * 100_000, "\\u202eunet", "ｕｎｅｔ",
)  # fmt: skip
NAMES = ("../../x", "/abs", "a/b", "a\\\\b", ".hidden", "-rf", "", " ", "con ", "a" * 65, "a\\n", "~root", "a;b", "\\0")
SYNTAX = (
    "!!python/object/apply:os.system ['touch pwned']",
    "!!python/name:os.system",
    "!!python/object/new:subprocess.Popen [[touch, pwned]]",
    "!!binary aGVsbG8=",
    "!include /etc/passwd",
    "!ENV ${HOME}",
    "&a [*a]",
    "[&a {<<: *a}]",
    "{<<: {a: 1}}",
    "[" * 40 + "]" * 40,
    "[" * 100_000,
    "{a: " * 100_000,
    "? " * 10_000,
    "- " * 10_000,
    "9" * 5000,
    "0x" + "f" * 5000,
    "1e" + "9" * 5000,
    ".inf",
    "-.inf",
    ".nan",
    '"\\ud800"',
    "%TAG ! tag:x",
    "--- a\n--- b",
    "|" + "\n  x" * 50_000,
    "'" + "x" * 2_000_000 + "'",
    "\t\t",
    "*undefined",
    "a: b: c",
    "[1, 2",
)


def corpus() -> list[str]:
    """At least sixty texts."""
    texts = [GOOD.replace("name: mlp", f'name: "{word}"') for word in STRINGS]
    texts += [GOOD.replace("name: points", f'name: "{word}"', 1) for word in NAMES]
    texts += [GOOD + f"seed: {value}\n" for value in SYNTAX]
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    texts += [
        bomb,
        GOOD + "_target_: os.system\n",
        GOOD + "class_path: os.system\n",
        GOOD * 2,
        "\0" * 1000,
        "\ufffe" * 9,
    ]
    texts += [GOOD + "\n".join(f"k{i}: {i}" for i in range(20_000)), GOOD + "x:\n" * 50_000]
    return texts


CHILD = """
import json, resource, sys, time
from diffkit import load_recipe
from diffkit.errors import DiffkitError

texts = json.loads(open(sys.argv[1]).read())
load_recipe(texts[0])
try:
    load_recipe("name: a\\nnetwork: nope\\nbad: 1\\n")
except DiffkitError as error:
    error.render()
events = []
def hook(event, arguments):
    if event.partition(".")[0] in ("exec", "import", "os", "subprocess", "socket", "pickle", "ctypes"):
        events.append([event, str(arguments)[:200]])
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        events.append([event, str(arguments)[:200]])
sys.addaudithook(hook)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = []
for text in texts[1:]:
    events.clear()
    start = time.process_time()
    try:
        load_recipe(text + "\\n")
        outcome = "accepted"
    except DiffkitError as error:
        outcome = str(error.exit_code) if error.render() else "silent"
    report.append([outcome, time.process_time() - start, list(events)])
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"report": report, "grown": grown}))
"""


def test_hostile_recipes_cause_an_error_and_nothing_else(tmp_path: Path) -> None:
    texts = corpus()
    assert len(texts) >= 60
    (tmp_path / "texts.json").write_text(json.dumps([GOOD, *texts]))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "texts.json")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "DIFFKIT_PLUGINS": "none", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for text, (outcome, seconds, events) in zip(texts, found["report"], strict=True):
        assert outcome in ("3", "4"), (text[:200], outcome)  # 4 for plugin/name
        assert seconds < 1.0, (text[:200], seconds)
        assert events == [], (text[:200], events)
    assert found["grown"] < 200, "MiB"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.json"]
