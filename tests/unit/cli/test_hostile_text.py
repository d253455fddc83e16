"""Texts in the files of a run or in a recipe reach the terminal as text: no control character, no markup."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import RECIPE, Diffkit, Said

PAYLOAD = "x\x1b]0;title\x07\x1b[2J\x9b\u202e[bold red]y[/bold red][/z]\r"
CONTROL = re.compile(r"[^\n -~\xa0-\u2027\u202f-\U0010ffff]")
FILES = ("results.json", "environment.json", "events.jsonl", "metrics.jsonl", "LOCK", "effective.yaml", "recipe.yaml")
MANIFEST = "checkpoints/step-00000020/manifest.json"
COMMANDS = {
    "ls": lambda run: ["ls", "runs"],
    "checkpoints": lambda run: ["checkpoints", run, "--verify"],
    "compare": lambda run: ["compare", run, run],
    "report": lambda run: ["report", run],
}


def assert_plain(said: Said) -> None:
    """Nothing controls the terminal, and markup that is printed is printed as written."""
    shown = said.out + said.err
    assert not CONTROL.search(shown), repr(CONTROL.findall(shown))
    assert "bold red" not in shown.replace("[bold red]", "").replace("[/bold red]", "")
    assert "Traceback" not in shown


def in_values(value: object) -> object:
    """Return a JSON value with the payload in each text."""
    if isinstance(value, dict):
        return {key: in_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [in_values(item) for item in value]
    return PAYLOAD if isinstance(value, str) else value


def in_keys(value: object) -> object:
    """Return a JSON value with the payload in each key."""
    if isinstance(value, dict):
        return {key + PAYLOAD: in_keys(item) for key, item in value.items()}
    return [in_keys(item) for item in value] if isinstance(value, list) else value


def poison(path: Path, change: Callable[[object], object]) -> None:
    """Change every line of a JSON file or log; in YAML, every word after a colon."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        quoted = json.dumps(PAYLOAD)
        path.write_text(re.sub(r"(?m)^(name|  name): \S+", rf"\1: {quoted}".replace("\\", "\\\\"), text), "utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(change(json.loads(line))) + "\n" for line in text.splitlines()), "utf-8")
    else:
        path.write_text(json.dumps(change(json.loads(text))), "utf-8")


@pytest.mark.parametrize("change", [in_values, pytest.param(in_keys, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", [*FILES, MANIFEST])
def test_files_of_a_run(
    diffkit: Diffkit,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    change: Callable[[object], object],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/ring")
    shutil.copytree(finished, run)
    poison(run / file, change)
    for name in ("ls", "checkpoints", "compare", "report"):
        assert_plain(diffkit(*COMMANDS[name](run)))


@pytest.mark.parametrize("at", ["name: ring", "mixture", "linear", "ancestral", "sliced-wasserstein", "steps: 20"])
def test_texts_of_a_recipe(diffkit: Diffkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    monkeypatch.chdir(tmp_path)
    key = f"{json.dumps(PAYLOAD)}: 3" if ":" in at else json.dumps(PAYLOAD)
    Path("ring.yaml").write_text(RECIPE.replace(at, key), encoding="utf-8")
    for line in (["validate"], ["config"], ["cite"], ["run"], ["validate", "--json"]):
        said = diffkit(*line, "ring.yaml")
        assert_plain(said)
    assert_plain(diffkit("validate", "digits", "--set", f"network.{PAYLOAD}={PAYLOAD}", "--set", PAYLOAD))


def test_names_on_the_command_line(diffkit: Diffkit) -> None:
    for line in (["show", PAYLOAD, PAYLOAD], ["ls", PAYLOAD], ["plugins", "--why", PAYLOAD], [PAYLOAD]):
        assert_plain(diffkit(*line))
