"""Checkpoints from elsewhere: whatever they hold, the worst that comes of them is a CheckpointError.

Each kind is built from a whole checkpoint. `signed` ones carry a manifest with right lengths, hashes and digest, as
somebody would make it who means harm; so what is tested is the check behind the manifest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffkit.errors import CheckpointError
from diffkit.storage.checkpoint import CheckpointStore
from diffkit.storage.manifest import inspect

EXPECTED: dict[str, Any] = {"network": {"w": torch.zeros(4, 3), "flag": torch.zeros(2, dtype=torch.bool)}}
NETWORK, STATE, MANIFEST = "network.safetensors", "state.json", "manifest.json"
GROUPS = [STATE, *(f"g{i}.safetensors" for i in range(99))]
FORBIDDEN = ("exec", "subprocess.", "os.system", "os.exec", "os.fork", "os.spawn", "socket.", "pickle.", "ctypes.")
Kind = Callable[[Path], object]
KINDS: dict[str, Kind] = {}
_events: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what a hostile file must never bring about: running code, or writing anywhere."""
    if _events is None:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    changes = event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
    if writes or changes or event.startswith(FORBIDDEN):
        _events.append(f"{event} {arguments[:1]}")


sys.addaudithook(_audit)


def kind(name: str) -> Callable[[Kind], Kind]:
    def note(function: Kind) -> Kind:
        assert name not in KINDS
        KINDS[name] = function
        return function

    return note


def many(cases: dict[str, Any], build: Callable[[Path, Any], object]) -> None:
    for name, value in cases.items():
        kind(name)(lambda path, value=value: build(path, value))


# --- the manifest, not signed -----------------------------------------------------------------------------------------

many(
    {
        "manifest is empty": b"",
        "manifest is not json": b"step: 3",
        "manifest is a list": b"[]",
        "manifest is null": b"null",
        "manifest is not utf-8": b'{"\xff": 1}',
        "manifest is utf-16": '{"format": 1}'.encode("utf-16"),
        "manifest is nested 100000 deep": b"[" * 100_000,
        "manifest has objects 100000 deep": b'{"a":' * 100_000,
        "manifest has a meta 900 deep": b'{"format": 1, "step": 2, "files": {"state.json": {"bytes": 1, '
        b'"sha256": "%s"}}, "digest": "%s", "meta": {"x": %s%s}}' % (b"0" * 64, b"0" * 64, b"[" * 900, b"]" * 900),
        "manifest has a number of 5000 digits": b'{"step": ' + b"9" * 5000 + b"}",
        "manifest has NaN": b'{"step": NaN}',
        "manifest has 1e999": b'{"step": 1e999}',
        "manifest is too long": b'{"meta": "' + b"x" * (2 << 20) + b'"}',
        "manifest is a pickle": pickle.dumps({"format": 1}),
    },
    lambda path, data: (path / MANIFEST).write_bytes(data),
)


@kind("manifest has a name twice")
def _(path: Path) -> None:
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace('"step": 2', '"step": 2,\n "step": 2'))


@kind("manifest is written in another way")
def _(path: Path) -> None:
    (path / MANIFEST).write_text(json.dumps(json.loads((path / MANIFEST).read_text())))


@kind("manifest was changed without its digest")
def _(path: Path) -> None:
    (path / MANIFEST).write_text((path / MANIFEST).read_text().replace('"recipe": "abc"', '"recipe": "abd"'))


@kind("manifest is missing")
def _(path: Path) -> None:
    (path / MANIFEST).unlink()


@kind("manifest is a link")
def _(path: Path) -> None:
    (path / MANIFEST).rename(path.parent / "elsewhere.json")
    (path / MANIFEST).symlink_to(path.parent / "elsewhere.json")


@kind("manifest is a directory")
def _(path: Path) -> None:
    (path / MANIFEST).unlink()
    (path / MANIFEST).mkdir()


@kind("manifest is a pipe")
def _(path: Path) -> None:
    (path / MANIFEST).unlink()
    os.mkfifo(path / MANIFEST)


# --- the manifest, signed ---------------------------------------------------------------------------------------------


def sign(path: Path, change: Callable[[dict[str, Any]], object] = lambda body: None) -> None:
    """Write a manifest that fits the files, changed by `change`, with a right digest."""
    body = json.loads((path / MANIFEST).read_text())
    del body["digest"]
    for name in body["files"]:
        data = (path / name).read_bytes()
        body["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(body)

    def dump(value: dict[str, Any]) -> str:
        return json.dumps(value, indent=1, sort_keys=True) + "\n"

    body["digest"] = hashlib.sha256(dump(body).encode()).hexdigest()
    (path / MANIFEST).write_text(dump(body))


many(
    {
        "format of tomorrow": lambda body: body.update(format=2),
        "format is true": lambda body: body.update(format=True),
        "format is missing": lambda body: body.pop("format"),
        "another step": lambda body: body.update(step=3),
        "a negative step": lambda body: body.update(step=-2),
        "step is text": lambda body: body.update(step="2"),
        "step is a fraction": lambda body: body.update(step=2.0),
        "no files": lambda body: body.update(files={}),
        "files are a list": lambda body: body.update(files=[NETWORK]),
        "too many files": lambda body: body.update(files=dict.fromkeys(GROUPS, body["files"][STATE])),
        "no state": lambda body: body["files"].pop(STATE),
        "meta is a list": lambda body: body.update(meta=[1]),
        "meta is infinite": lambda body: body.update(meta={"x": math.inf}),
        "an entry too many": lambda body: body.update(instantiate="os.system"),
        "a stamp is null": lambda body: body["files"].update({NETWORK: None}),
        "a stamp has more": lambda body: body["files"][NETWORK].update(mode=511),
        "a length is negative": lambda body: body["files"][NETWORK].update(bytes=-1),
        "a length is true": lambda body: body["files"][NETWORK].update(bytes=True),
        "a length is wrong": lambda body: body["files"][NETWORK].update(bytes=1 << 60),
        "a hash is short": lambda body: body["files"][NETWORK].update(sha256="00"),
        "a hash is a list": lambda body: body["files"][NETWORK].update(sha256=["0" * 64]),
        "a hash is in capitals": lambda body: body["files"][NETWORK].update(sha256="A" * 64),
    },
    sign,
)
many(
    {
        "traversal": "../../outside.safetensors",
        "traversal by one": "..",
        "an absolute path": "/etc/passwd",
        "an absolute tensor file": "/tmp/x.safetensors",
        "a file in a subdirectory": "a/b.safetensors",
        "a name with a backslash": "a\\b.safetensors",
        "a name with NUL": "a\0.safetensors",
        "a name with a newline": "a\n.safetensors",
        "an empty name": "",
        "the name of a suffix": ".safetensors",
        "a pickle by name": "network.pkl",
        "a name too long": "x" * 300 + ".safetensors",
        "the manifest in itself": MANIFEST,
        "a lone surrogate": "\ud800.safetensors",
    },
    lambda path, name: sign(path, lambda body: body["files"].update({name: body["files"][NETWORK]})),
)


# --- the directory ----------------------------------------------------------------------------------------------------


@kind("the checkpoint is a link")
def _(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


@kind("the checkpoint is a file")
def _(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"x")


@kind("the checkpoint is empty")
def _(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


@kind("a file is missing")
def _(path: Path) -> None:
    (path / NETWORK).unlink()


@kind("a file too many")
def _(path: Path) -> None:
    (path / "sitecustomize.py").write_text("raise SystemExit(3)")


@kind("a directory too many")
def _(path: Path) -> None:
    (path / "more").mkdir()


@kind("a link too many")
def _(path: Path) -> None:
    (path / "more.safetensors").symlink_to("/etc/passwd")


@kind("a link to a file that is right")
def _(path: Path) -> None:
    (path / NETWORK).rename(path.parent / "elsewhere.safetensors")
    (path / NETWORK).symlink_to(path.parent / "elsewhere.safetensors")


@kind("a link to nowhere")
def _(path: Path) -> None:
    (path / NETWORK).unlink()
    (path / NETWORK).symlink_to("nowhere")


@kind("a pipe")
def _(path: Path) -> None:
    (path / NETWORK).unlink()
    os.mkfifo(path / NETWORK)


@kind("a directory for a file")
def _(path: Path) -> None:
    (path / STATE).unlink()
    (path / STATE).mkdir()


# --- the tensors, signed ----------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/pwned",)


def safetensors(header: object, data: bytes = bytes(50)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (4, 3), offsets: object = (0, 48)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FLAG = entry("BOOL", [2], [48, 50])
WHOLE = {"w": entry(), "flag": FLAG}


def tensor_file(path: Path, data: bytes) -> None:
    (path / NETWORK).write_bytes(data)
    sign(path)


many(
    {
        "a pickle under a safetensors name": pickle.dumps(Bomb()),
        "a zip under a safetensors name": b"PK\3\4" + bytes(100),
        "an empty tensor file": b"",
        "seven bytes": bytes(7),
        "a header of no bytes": bytes(8),
        "a header of 2^64 - 1 bytes": b"\xff" * 8 + b"{}",
        "a header of 2^63 bytes": (1 << 63).to_bytes(8, "little") + b"{}",
        "a header of 9 MB": safetensors(b"{}" + b" " * (9 << 20)),
        "a header that is not json": safetensors(b"import os"),
        "a header that is a list": safetensors([1]),
        "a header that is too deep": safetensors(b'{"w":' * 100_000),
        "a header with a huge number": safetensors(b'{"w": ' + b"9" * 5000 + b"}"),
        "a tensor twice": safetensors(b'{"w": {}, "w": {}}'),
        "a tensor that is null": safetensors({"w": None}),
        "a tensor without a type": safetensors({"w": {"shape": [4, 3], "data_offsets": [0, 48]}}),
        "a tensor with more": safetensors({"w": entry() | {"strides": [0, 0]}, "flag": FLAG}),
        "an unknown type": safetensors({"w": entry("F4"), "flag": FLAG}),
        "a type that is a list": safetensors({"w": entry(["F32"]), "flag": FLAG}),
        "a negative dimension": safetensors({"w": entry(shape=[-4, -3]), "flag": FLAG}),
        "a dimension that is true": safetensors({"w": entry(shape=[12, True]), "flag": FLAG}),
        "a dimension that is a fraction": safetensors({"w": entry(shape=[12.0]), "flag": FLAG}),
        "a shape that is a number": safetensors({"w": entry(shape=12), "flag": FLAG}),
        "a shape that overflows": safetensors({"w": entry(shape=[1 << 62, 1 << 62, 0, 4]), "flag": FLAG}),
        "a shape that wraps around": safetensors({"w": entry(shape=[1 << 32, 1 << 32]), "flag": FLAG}),
        "a shape of 10^4 dimensions": safetensors({"w": entry(shape=[1] * 10_000), "flag": FLAG}),
        "a dimension of 2^80": safetensors({"w": entry(shape=[1 << 80]), "flag": FLAG}),
        "offsets that overlap": safetensors({"w": entry(), "flag": entry("BOOL", [2], [47, 49])}, bytes(49)),
        "offsets with a hole": safetensors({"w": entry(), "flag": entry("BOOL", [2], [49, 51])}, bytes(51)),
        "offsets beyond the file": safetensors({"w": entry(shape=[1 << 40], offsets=[0, 1 << 42])}),
        "offsets that run backwards": safetensors({"w": entry(offsets=[48, 0]), "flag": FLAG}),
        "one offset": safetensors({"w": entry(offsets=[0]), "flag": FLAG}),
        "offsets that are text": safetensors({"w": entry(offsets=["0", "48"]), "flag": FLAG}),
        "data behind the tensors": safetensors(WHOLE, bytes(50) + b"#!/bin/sh"),
        "data too short": safetensors(WHOLE, bytes(49)),
        "metadata that is no text": safetensors(WHOLE | {"__metadata__": {"a": {"b": 1}}}),
        "metadata that is a list": safetensors(WHOLE | {"__metadata__": []}),
        "a boolean that is neither": safetensors(WHOLE, bytes(48) + b"\1\2"),
        "another shape than the recipe": safetensors({"w": entry(shape=[3, 4]), "flag": FLAG}),
        "another type than the recipe": safetensors({"w": entry("I32"), "flag": FLAG}),
        "a tensor too few": safetensors({"w": entry()}, bytes(48)),
        "a tensor too many": safetensors(WHOLE | {"evil": entry("U8", [1], [50, 51])}, bytes(51)),
        "a tensor of another name": safetensors({"__class__": entry(), "flag": FLAG}),
    },
    tensor_file,
)


@kind("a header with 300000 names")
def _(path: Path) -> None:
    tensor_file(path, safetensors({f"x{i}": entry(offsets=[0, 0], shape=[0]) for i in range(300_000)}))


@kind("a header with 30000 names")
def _(path: Path) -> None:
    tensor_file(path, safetensors({f"x{i}": entry(offsets=[0, 0], shape=[0]) for i in range(30_000)}, b""))


@kind("another group than the recipe")
def _(path: Path) -> None:
    (path / NETWORK).rename(path / "other.safetensors")
    body = json.loads((path / MANIFEST).read_text())
    body["files"]["other.safetensors"] = body["files"].pop(NETWORK)
    (path / MANIFEST).write_text(json.dumps(body))
    sign(path)


@kind("a sparse terabyte")
def _(path: Path) -> None:
    """Refused for its shapes before it is hashed."""
    header = safetensors({"w": entry("U8", [1 << 40], [0, 1 << 40])}, b"")
    (path / NETWORK).write_bytes(header)
    sign(path, lambda body: body["files"][NETWORK].update(bytes=len(header) + (1 << 40)))
    os.truncate(path / NETWORK, len(header) + (1 << 40))


# --- the state, signed ------------------------------------------------------------------------------------------------


def state_file(path: Path, data: bytes) -> None:
    (path / STATE).write_bytes(data)
    sign(path)


many(
    {
        "state is empty": b"",
        "state is a list": b"[]",
        "state is a pickle": pickle.dumps(Bomb()),
        "state has NaN": b'{"loss": NaN}',
        "state has -Infinity": b'{"loss": -Infinity}',
        "state has 1e999": b'{"loss": 1e999}',
        "state has a name twice": b'{"a": 1, "a": 2}',
        "state is too deep": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "state has a number of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
        "state is not utf-8": b'{"a": "\xff"}',
        "state is too long": b" " * (65 << 20),
    },
    state_file,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = CheckpointStore(tmp_path_factory.mktemp("whole"))
    for step in (1, 2):
        store.save(step, {"network": EXPECTED["network"]}, {"images": step}, {"recipe": "abc"})
    assert store.load(EXPECTED) is not None
    return store.directory


@pytest.fixture
def directory(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoints"))


def quietly(action: Callable[[], object]) -> list[str]:
    """What `action` did that no checkpoint may bring about."""
    global _events
    _events = []
    try:
        action()
    finally:
        found, _events = _events, None
    return found


@pytest.mark.parametrize("name", KINDS)
def test_a_hostile_checkpoint_is_an_error_and_nothing_more(directory: Path, name: str) -> None:
    KINDS[name](directory / "step-00000002")
    faults: list[str] = []
    store = CheckpointStore(directory, on_event=lambda event, fields: faults.append(str(fields["reason"])))

    def fall_back() -> None:
        loaded = store.load(EXPECTED)
        assert loaded is not None
        assert (loaded.step, loaded.state) == (1, {"images": 1})

    assert quietly(fall_back) == []
    assert len(faults) == 1
    assert len(faults[0]) < 400
    assert faults[0].isprintable()
    shutil.rmtree(directory / "step-00000001")

    def refuse() -> None:
        with pytest.raises(CheckpointError, match="none of the 1 checkpoints") as caught:
            store.load(EXPECTED)
        assert caught.value.exit_code == 8
        assert "\ntraceback" not in caught.value.render().lower()

    assert quietly(refuse) == []


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"a sparse terabyte"}))
def test_without_a_recipe_it_is_inspected_in_safety(directory: Path, name: str) -> None:
    """`diffkit checkpoints RUN --verify` knows no shapes; it lists every candidate and never fails."""
    KINDS[name](directory / "step-00000002")
    assert quietly(lambda: inspect(directory, contents=True)) == []
    found = inspect(directory, contents=True)
    assert [status.step for status in found] == [2, 1]
    assert found[1].damage is None
    assert quietly(lambda: CheckpointStore(directory).load()) == []


def test_a_traversal_names_nothing_outside(directory: Path) -> None:
    """The file outside is right in every way, and is not read."""
    outside = directory.parent.parent / "outside.safetensors"
    shutil.copy(directory / "step-00000002" / NETWORK, outside)
    KINDS["traversal"](directory / "step-00000002")
    assert "not a file of a checkpoint" in str(inspect(directory)[0].damage)


def test_the_corpus_is_large_enough() -> None:
    assert len(KINDS) >= 40
    assert not Path("/tmp/pwned").exists()


STATES: dict[str, bytes] = {
    "nothing": b"{}",
    "step is text": b'{"step": "2", "window": {"sums": {}}, "data": "x", "betas": [1]}',
    "step is true": b'{"step": true, "window": {"sums": {}}, "data": "x", "betas": [1]}',
    "step is another": b'{"step": 9, "window": {"sums": {}}, "data": "x", "betas": [1]}',
    "a mapping is a list": b'{"step": 2, "window": [], "data": "x", "betas": [1]}',
    "a mapping lacks a name": b'{"step": 2, "window": {}, "data": "x", "betas": [1]}',
    "text among the sums": b'{"step": 2, "window": {"sums": {"loss": "os.system"}}, "data": "x", "betas": [1]}',
    "text is a mapping": b'{"step": 2, "window": {"sums": {}}, "data": {"_target_": "os.system"}, "betas": [1]}',
    "text is null": b'{"step": 2, "window": {"sums": {}}, "data": null, "betas": [1]}',
    "a list is text": b'{"step": 2, "window": {"sums": {}}, "data": "x", "betas": "x"}',
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_another_form_is_passed_over(directory: Path, name: str) -> None:
    """What the trainer would stumble over is found while there is still an older checkpoint to take."""
    example = {"step": 0, "window": {"sums": {}}, "data": "text", "betas": (0.9,)}
    right = b'{"step": %d, "window": {"sums": {"loss": 1}}, "data": "x", "betas": [1, 2], "more": {}}'
    for step in (1, 2):
        state_file(directory / f"step-{step:08d}", right % step)
    loaded = CheckpointStore(directory).load(EXPECTED, state=example)
    assert loaded is not None
    assert loaded.step == 2
    state_file(directory / "step-00000002", STATES[name])
    faults: list[str] = []
    store = CheckpointStore(directory, on_event=lambda event, fields: faults.append(str(fields["reason"])))
    loaded = store.load(EXPECTED, state=example)
    assert loaded is not None
    assert loaded.step == 1
    assert len(faults) == 1
    assert faults[0].startswith("state.")
