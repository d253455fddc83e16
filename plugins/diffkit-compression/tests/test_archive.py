"""Archives: the commands of a user, and everything that is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffkit_compression import commands
from diffkit_compression.archive import Entry, pack, unpack
from diffkit_compression.compressing import compress, decompress
from diffkit_compression.files import grey_values, read_files, read_part, write_files
from PIL import Image

from diffkit import DataError, DataSpec, Run, UsageError, assemble, load_recipe, open_run, run_from_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:the archive of"),
    pytest.mark.xdist_group("archive"),
]  # an untrained network
RECIPE = """\
name: small
data: {name: digits, labels: false}
schedule: {name: linear, steps: 100}
parameterization: eps
network: {name: unet, channels: 8, multipliers: [1], blocks: 1, attention: []}
objective: simple
train: {steps: 0, batch_size: 4, ema: []}
sample: {sampler: ancestral, guidance: [clip]}
evaluate: {metrics: []}
"""
SPEC = DataSpec(1, (8, 8), bounded=True, bins=17)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of an untrained network."""
    return make(tmp_path_factory.mktemp("runs") / "small")


def make(path: Path, *overrides: str) -> Run:
    recipe = load_recipe(RECIPE, overrides)
    run_from_weights(recipe, path, assemble(recipe).network.state_dict(), "a test")
    return open_run(path, device="cpu")


@pytest.fixture(scope="module")
def archive(run: Run) -> bytes:
    return compress(run, *read_part(run.assembly.data, "held-out", 3), layers=4)


def test_every_value_comes_back(run: Run, archive: bytes) -> None:
    entries, values = read_part(run.assembly.data, "held-out", 3)
    assert decompress(run, archive) == (entries, pytest.approx(values))
    assert unpack(archive)[0].mode == "lossless"


def test_pictures_and_arrays_keep_names_and_order(run: Run, tmp_path: Path) -> None:
    _, values = read_part(run.assembly.data, "held-out", 5)
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    shown = grey_values(SPEC)[values[:, 0]].astype(np.uint8)
    for name, pixels in zip(("z.png", "a.png", "b/c.png"), shown):
        Image.fromarray(pixels).save(folder / name)
    np.save(folder / "more.npy", values[3:, 0].numpy().astype(">i2"))
    entries, read = read_files([folder], SPEC)
    assert [e.name for e in entries] == ["a.png", "b/c.png", "more.npy", "z.png"]
    assert torch.equal(read, values[[1, 2, 3, 4, 0]])

    write_files(tmp_path / "out", *decompress(run, compress(run, entries, read, layers=3)), SPEC)
    for name in ("z.png", "a.png", "b/c.png"):
        assert np.array_equal(Image.open(tmp_path / "out" / name), Image.open(folder / name))
    assert np.array_equal(np.load(tmp_path / "out" / "more.npy"), np.load(folder / "more.npy"))
    with pytest.raises(UsageError, match="exists already") as caught:
        write_files(tmp_path / "out", entries, read, SPEC)
    assert caught.value.code == "DK353"


def test_the_commands(run: Run, tmp_path: Path) -> None:
    cli, where, out = CliRunner(), str(run.directory.path), tmp_path / "out"
    made = [where, "--part", "held-out", "--count", "2", "--layers", "4", "-o", str(tmp_path / "a.dkz")]
    done = cli.invoke(commands.compress, made, catch_exceptions=False)
    assert "lossless, 2 examples" in done.output
    shown = json.loads(cli.invoke(commands.inspect, [str(tmp_path / "a.dkz"), "--json"]).output)
    assert shown["examples"] == 2
    assert shown["header bytes"] <= 1024 + 42
    cli.invoke(commands.decompress, [where, str(tmp_path / "a.dkz"), str(out)], catch_exceptions=False)
    assert np.array_equal(np.load(out / "held-out.npy"), run.assembly.data.split("held-out").x[:2])  # type: ignore[attr-defined]


def test_a_single_picture_is_lossy_and_progressive(run: Run) -> None:
    entries, values = read_part(run.assembly.data, "held-out", 1)
    made = compress(run, entries, values, bits=120, layers=10)
    header = unpack(made)[0]
    assert header.mode == "lossy"
    assert header.bits <= 120
    decompress(run, made)
    decompress(run, made, bits=30)
    decompress(run, compress(run, entries, values, bits=1, layers=10))  # less than the first move takes
    with pytest.warns(UserWarning, match=r"more than the .* of raw values"):
        compress(run, entries, values, lossless=True, layers=4)


def test_every_flipped_byte_and_every_truncation_is_refused(archive: bytes) -> None:
    for place in range(len(archive)):
        changed = bytearray(archive)
        changed[place] ^= 1 << (place % 8)
        with pytest.raises(DataError, match="archive") as found:
            unpack(bytes(changed))
        assert found.value.code == "DK351"
    for end in range(len(archive)):
        with pytest.raises(DataError, match="archive"):
            unpack(archive[:end])
    with pytest.raises(DataError, match=r"has .* bytes, not"):
        unpack(archive + b"\0")


@pytest.mark.parametrize(
    ("name", "value"),
    [("cpu", "Z80"), ("threads", 64), ("device", "cuda"), ("model", "B" * 43)],
)
def test_another_machine_is_refused(run: Run, archive: bytes, name: str, value: Any) -> None:
    header, entries, words = unpack(archive)
    fields = header.model_dump(exclude={"names", "stream"})
    fields["identity"] |= {"model": "A" * 43, name: value}  # another machine rounds the levels of the model differently
    with pytest.raises(DataError, match=f"the archive requires {name}") as found:
        decompress(run, pack(fields, entries, words))
    assert found.value.code == "DK352"
    assert found.value.fix is not None


def test_lossless_archives_of_earlier_formats_are_read_and_others_refused(run: Run, archive: bytes) -> None:
    entries, values = decompress(run, archive)
    assert decompress(run, changed(archive, format=1)) == (entries, pytest.approx(values))
    assert unpack(changed(archive, format=2))[0].mode == "lossless"
    for other in (changed(archive, format=4), changed(archive, format=2, mode="lossy")):
        with pytest.raises(DataError, match="this version decodes format 3") as found:
            unpack(other)
        assert found.value.code == "DK352"
    with pytest.raises(DataError, match="its header is not valid"):
        unpack(changed(archive, count=0))


def changed(archive: bytes, **fields: Any) -> bytes:
    """Return the archive with other fields in its header."""
    end = 42 + int.from_bytes(archive[8:10], "little")
    text = json.dumps(json.loads(archive[42:end]) | fields, separators=(",", ":")).encode()
    start = archive[:8] + len(text).to_bytes(2, "little")
    return start + hashlib.sha256(start + text).digest() + text + archive[end:]


def test_other_weights_and_another_model_are_refused(run: Run, archive: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the archive requires weights"):
        decompress(make(tmp_path / "other", "seed=1"), archive)
    with pytest.raises(DataError, match="the archive requires model"):
        decompress(make(tmp_path / "cosine", "schedule={name: linear, steps: 99}"), archive)


def test_another_result_of_the_model_is_refused(run: Run, archive: bytes) -> None:
    header, entries, words = unpack(archive)
    fields = header.model_dump(exclude={"names", "stream"})
    fields["identity"]["probe"] = "A" * 43
    with pytest.raises(DataError, match="the archive requires probe"):
        decompress(run, pack(fields, entries, words))


def test_decoded_values_are_compared_with_the_original_ones(run: Run, archive: bytes) -> None:
    header, entries, words = unpack(archive)
    fields = header.model_dump(exclude={"names", "stream"}) | {"pixels": "A" * 43}
    with pytest.raises(DataError, match="differ from the original"):
        decompress(run, pack(fields, entries, words))


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a\\b.png", "a\n.png"])
def test_a_name_never_leaves_the_folder(archive: bytes, name: str) -> None:
    header, _, words = unpack(archive)
    fields = header.model_dump(exclude={"names", "stream"})
    with pytest.raises(DataError, match="a name leaves the folder"):
        unpack(pack(fields, [Entry(name=name), Entry(name="b"), Entry(name="c")], words))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    cases = {
        "size.png": (np.zeros((8, 9), np.uint8), "9x8 pixels"),
        "mode.png": (np.zeros((8, 8, 3), np.uint8), "its mode is RGB"),
        "value.png": (np.full((8, 8), 3, np.uint8), "a pixel of value 3"),
        "range.npy": (np.full((2, 8, 8), 17, np.uint8), "its values are 17 to 17"),
        "shape.npy": (np.zeros((2, 8, 9), np.uint8), "its shape is"),
        "kind.npy": (np.zeros((2, 8, 8)), "it holds float64"),
    }
    for name, (array, message) in cases.items():
        path = tmp_path / name
        np.save(path, array) if name.endswith(".npy") else Image.fromarray(array).save(path)
        with pytest.raises(UsageError, match=message) as found:
            read_files([path], SPEC)
        assert found.value.code == "DK350"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "photo.jpg").write_bytes(b"")
    for path, message in ((tmp_path / "broken.png", "not a valid PNG"), (tmp_path / "photo.jpg", "neither a PNG")):
        with pytest.raises(UsageError, match=message):
            read_files([path], SPEC)


def test_runs_that_cannot_code_are_refused(tmp_path: Path) -> None:
    point = make(tmp_path / "ring", "data={name: mixture, layout: ring}", "network={name: mlp, width: 8, depth: 1}",
                 "sample.guidance=[]")  # fmt: skip
    with pytest.raises(UsageError, match="models continuous data"):
        compress(point, [Entry(name="a.npy", shape=(2, 2), dtype="|u1")], torch.zeros(2, 2).long(), layers=4)


@pytest.mark.slow
def test_a_fresh_process_with_another_hash_seed_decodes(run: Run, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.dkz").write_bytes(archive)
    command = [sys.executable, "-m", "diffkit", "decompress", str(run.directory.path), "a.dkz", "out"]
    threads = str(unpack(archive)[0].identity.threads)
    env = os.environ | {"PYTHONHASHSEED": "42", "OMP_NUM_THREADS": threads}
    subprocess.run(command, check=True, cwd=tmp_path, env=env)
    _, values = read_part(run.assembly.data, "held-out", 3)
    assert np.array_equal(np.load(tmp_path / "out" / "held-out.npy"), values)
