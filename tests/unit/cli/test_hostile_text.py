"""Texts in files of a run, of data and of weights, or in a recipe, reach the terminal as text: no control character, no
markup.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffkit import Data, DiffkitError, build

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


NAME = "x\x1b]0;title\x07\x1b[2J\x9b\u202e[bold red]y[z]\r"
PICTURES = np.zeros((20, 8, 8, 1), np.uint8)


def npz(members: dict[str, Any]) -> bytes:
    """Return the bytes of an archive of arrays; texts are members that hold no array."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in members.items():
            member = io.BytesIO(array.encode() if isinstance(array, str) else b"")
            if not isinstance(array, str):
                np.save(member, array)
            archive.writestr(f"{name}.npy", member.getvalue())
    return file.getvalue()


def png() -> bytes:
    """Return the bytes of a picture."""
    file = io.BytesIO()
    Image.fromarray(PICTURES[0, :, :, 0]).save(file, "PNG")
    return file.getvalue()


def tar(fields: dict[str, Any], last: bytes) -> bytes:
    """Return a shard of three examples, and a fourth whose picture is `last`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for key in ("a", "b", f"c{NAME}", f"d{NAME}"):
            for suffix, content in (("png", last if key[0] == "d" else png()), ("json", json.dumps(fields).encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


ROWS = "".join(
    json.dumps({"file_name": f"{i}.png", NAME: i, "text": NAME, "kind": f"{NAME}{i}"}) + "\n" for i in range(4)
)
TABLE = f"file_name,{json.dumps(NAME)},text\n" + "".join(f'{i}.png,{json.dumps(NAME)},"{NAME}"\n' for i in range(4))
FOUR = {f"{i}.png": png() for i in range(4)}
LAST = {"layout": "channels-last"}
DATA: dict[str, tuple[str, dict[str, bytes], dict[str, Any]]] = {
    "names of arrays": ("arrays", {"x.npz": npz({NAME: PICTURES, f"z{NAME}": PICTURES})}, {}),
    "name of labels": ("arrays", {"x.npz": npz({"images": PICTURES, NAME: np.zeros(20)})}, LAST | {"labels": NAME}),
    "damaged member": ("arrays", {"x.npz": npz({NAME: "no array"})}, LAST | {"images": NAME}),
    "name of a file": ("arrays", {f"{NAME}.npy": b""}, {"images": NAME}),
    "name of a picture": ("images", FOUR | {f"{NAME}.png": b"no picture", f"{NAME}.xyz": b""}, {}),
    "skipped picture": ("images", FOUR | {f"{NAME}.png": b"no picture"}, {"errors": "skip"}),
    "names of classes": ("images", {f"{NAME}-{i}.png": png() for i in range(4)}, {"labels": True}),
    "column that is absent": ("images", FOUR | {"metadata.csv": TABLE.encode()}, {"captions": "absent"}),
    "name of a column": ("images", FOUR | {"metadata.csv": TABLE.encode()}, {"captions": NAME}),
    "numbers in a column": ("images", FOUR | {"metadata.csv": TABLE.encode()}, {"numbers": ["text"]}),
    "keys of JSON": ("images", FOUR | {"metadata.jsonl": ROWS.encode()}, {"captions": "absent"}),
    "captions": ("images", FOUR | {"metadata.jsonl": ROWS.encode()}, {"captions": "text"}),
    "classes in a column": ("images", FOUR | {"metadata.jsonl": ROWS.encode()}, {"classes": ["kind"]}),
    "caption files": ("images", FOUR | {f"{i}.txt": NAME.encode() for i in range(4)}, {"captions": "txt"}),
    "members of a shard": ("shards", {"0.tar": tar({"text": NAME}, png())}, {"captions": "absent"}),
    "keys in a shard": ("shards", {"0.tar": tar({NAME: NAME}, png())}, {"captions": NAME}),
    "damaged member of a shard": ("shards", {"0.tar": tar({"text": "a"}, b"no picture")}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_names_in_data(diffkit: Diffkit, tmp_path: Path, case: str) -> None:
    """Messages, warnings and the summary contain no control character, also if Python prints them."""
    component, files, options = DATA[case]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "x.npz" if "x.npz" in files else tmp_path
    if component == "shards":
        assert_plain(diffkit("shards", path))
    if component != "arrays":
        options = options | {"size": 8, "held_out": 1}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            data: Data = build("data", component, path=str(path), **options)
            shown = data.summary
            for part in ("train", "held-out"):
                split = data.split(part)
                _ = [split[i] for i in range(len(split))]
        except DiffkitError as error:
            shown = f"{error}{error.render()}"
    assert not CONTROL.search("".join([shown, *(str(one.message) for one in warned)]))


def test_names_in_weights(diffkit: Diffkit, tmp_path: Path) -> None:
    """Tensors and metadata of a foreign file."""
    save_file({NAME: torch.zeros(3), f"unet.{NAME}": torch.zeros(3)}, tmp_path / "x.safetensors", metadata={NAME: NAME})
    assert_plain(diffkit("import", tmp_path / "x.safetensors", tmp_path / f"out{NAME}"))
