"""Tar shards: packed and foreign ones, local and remote, whose batches depend on nothing but seed and step."""

import io
import json
import os
import shutil
import tarfile

import fsspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from diffkit import DataError, as_texts
from diffkit.basics.commands import shards as command
from diffkit.basics.data import packing, shard_index
from diffkit.basics.data.packing import pack
from diffkit.basics.data.pictures import read_picture
from diffkit.basics.data.shard_index import INDEX, build_index, load_index
from diffkit.basics.data.shards import Shards
from diffkit.basics.data.splits import divide, divide_ranks
from diffkit.train.data_loading import ShuffledOrder, batch_source


def png(seed: int, height: int = 6, width: int = 5) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Thirty pictures in two folders, with captions and fields, and their shards."""
    top = tmp_path_factory.mktemp("made")
    for i in range(30):
        place = top / "pictures" / ("cats" if i % 3 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:03}.png").write_bytes(png(i))
        (place / f"{i:03}.txt").write_text(f"picture {i} ü\n" + "!" * i, encoding="utf-8")
        fields = {
            "age": i / 2,
            "kind": f"k{i % 4}",
            "x": i,
            "title": f"title {i}",
            "list": [1],
            **({"n": 1} if i else {}),
        }
        (place / f"{i:03}.json").write_text(json.dumps(fields | ({"n": 1} if i else {})))
    assert pack(top / "pictures", top / "shards", labels=True, shard_bytes=16 << 10) == 30
    return top


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made / "pictures", tmp_path / "pictures")


@pytest.fixture
def packed(made, tmp_path):
    return shutil.copytree(made / "shards", tmp_path / "shards")


def everything(data: Shards) -> list[bytes]:
    """Every example of both parts as bytes."""
    parts = [data.split(part) for part in ("train", "held-out")]
    rows = [part[i] for part in parts for i in range(len(part))]
    return [x.numpy().tobytes() + b"".join(cond[k].numpy().tobytes() for k in sorted(cond)) for x, cond in rows]


def write_tar(path, files) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_examples_are_those_of_the_folder(folder, packed) -> None:
    assert len(list(packed.glob("*.tar"))) > 3
    given = {"classes": {"kind": "kind", "whole": "x"}, "numbers": {"age": "age", "pair": ("age", "x")}}
    data = Shards(str(packed), labels=True, captions=True, held_out=5, **given)
    conditions = data.spec.conditions
    assert data.spec.class_names == ("cats", "dogs")
    assert conditions["kind"].names == ("k0", "k1", "k2", "k3")
    assert conditions["whole"].names == tuple(map(str, range(30)))
    assert (conditions["pair"].shape, conditions["text"].dtype) == ((2,), "text")
    seen = set()
    for part, count in (("train", 25), ("held-out", 5)):
        split = data.split(part)
        assert len(split) == count
        for x, cond in (split[i] for i in range(count)):
            i = int(cond["whole"])
            seen.add(i)
            place = folder / ("cats" if i % 3 else "dogs") / f"{i:03}.png"
            assert torch.equal(x, read_picture(place, None, "rgb"))
            assert as_texts(cond["text"][None]) == [(f"picture {i} ü\n" + "!" * i).strip()]
            assert (int(cond["label"]), int(cond["kind"])) == (int(i % 3 == 0), i % 4)
            assert cond["pair"].tolist() == [i / 2, i]
            assert float(cond["age"]) == i / 2
    assert seen == set(range(30))


def test_captions_of_a_field_and_one_grey_size(packed) -> None:
    data = Shards(str(packed), size=4, color="grey", captions="title")
    x, cond = data.split("train")[0]
    assert x.shape == data.spec.shape == (1, 4, 4)
    assert as_texts(cond["text"][None])[0].startswith("title ")


def test_parts_are_those_of_names() -> None:
    keys = [f"a/{i}" for i in range(500)]
    hashed = [int.from_bytes(shard_index.blake2b(key.encode(), digest_size=8).digest(), "big") for key in keys]
    ranks = torch.tensor([one - (1 << 63) for one in hashed])
    for held_out in (7, 0.1, 0.9, 1e-9):
        assert [part.tolist() for part in divide_ranks(ranks, held_out)] == list(divide(keys, held_out))
    with pytest.raises(DataError, match="too few"):
        divide_ranks(ranks, 500)


def test_packing_continues_and_gives_the_same_bytes(folder, packed, tmp_path, monkeypatch) -> None:
    other, write = tmp_path / "again", packing._write
    written = []

    def stops(root, path, examples) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(root, path, examples)

    monkeypatch.setattr(packing, "_write", stops)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, other, labels=True, shard_bytes=16 << 10)
    assert not (other / INDEX).exists()
    monkeypatch.setattr(packing, "_write", lambda root, path, some: written.append(path) or write(root, path, some))
    assert pack(folder, other, labels=True, shard_bytes=16 << 10) == 30
    assert len(written) == len(set(written)) == len(list(other.glob("*.tar")))
    assert {one.name: one.read_bytes() for one in other.iterdir()} == {
        one.name: one.read_bytes() for one in packed.iterdir()
    }
    before = (other / INDEX).stat().st_mtime_ns
    assert pack(folder, other, labels=True, shard_bytes=16 << 10) == 30
    assert (other / INDEX).stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"holds .* already") as caught:
        pack(folder, other, shard_bytes=16 << 10)
    assert caught.value.code == "DK316"


def test_remote_folders(packed) -> None:
    memory = fsspec.filesystem("memory")
    for one in packed.iterdir():
        memory.pipe_file(f"/bucket/flowers/{one.name}", one.read_bytes())
    local, remote = (Shards(path, labels=True, captions=True) for path in (str(packed), "memory://bucket/flowers"))
    assert everything(local) == everything(remote)
    assert local.fingerprint() == remote.fingerprint()
    memory.rm(f"/bucket/flowers/{INDEX}")
    with pytest.raises(DataError, match="diffkit shards memory://bucket/flowers"):
        Shards("memory://bucket/flowers").spec  # noqa: B018 - a property
    assert build_index("memory://bucket/flowers") == 30
    assert everything(Shards("memory://bucket/flowers", labels=True, captions=True)) == everything(local)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_step_alone(packed, workers) -> None:
    """The bytes of a batch are the same for one rank and two, any workers, and a start in the middle of an epoch."""
    split = Shards(str(packed), labels=True, captions=True, held_out=5).split("train")
    order, cpu = ShuffledOrder(len(split), 8, seed=3), torch.device("cpu")

    def batches(own: range, first: int, of_workers: int) -> list[bytes]:
        source = batch_source(split, order, own, range(first, 6), cpu, of_workers)
        found = [source.rows(step, own) for step in range(first, 6)]
        source.close()
        return [x.numpy().tobytes() + cond["text"].numpy().tobytes() for x, cond in found]

    whole = [split[i] for step in range(6) for i in order.rows(step, 0, 8).tolist()]
    images = b"".join(x.numpy().tobytes() for x, _ in whole)
    full = batches(range(8), 0, 0)
    assert b"".join(one[: 8 * 90] for one in full) == images
    assert batches(range(8), 0, workers) == full
    assert batches(range(8), 4, workers) == full[4:]
    first, second = batches(range(4), 2, workers), batches(range(4, 8), 2, workers)
    at = 4 * 90
    assert [a[:at] + b[:at] + a[at:] + b[at:] for a, b in zip(first, second, strict=True)] == full[2:]


def test_a_changed_shard_is_one_error(packed) -> None:
    data = Shards(str(packed))
    shard = next(iter(sorted(packed.glob("*.tar"))))
    content, status = bytearray(shard.read_bytes()), shard.stat()
    start = int(data._index.offset[0, 0])
    content[start + 40] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))  # a copy keeps size and time
    with pytest.raises(DataError, match=rf"{shard.name} differs from its index") as caught:
        everything(Shards(str(packed)))
    assert (caught.value.code, caught.value.exit_code) == ("DK315", 5)
    assert f"diffkit shards {packed}" in str(caught.value)
    shard.write_bytes(content[:-512])
    with pytest.raises(DataError, match="bytes were indexed") as caught:
        load_index(str(packed))
    assert caught.value.code == "DK315"
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        load_index(str(packed))


def test_another_index_is_another_fingerprint(folder, packed, tmp_path) -> None:
    first = Shards(str(packed)).fingerprint()
    assert Shards(str(packed), workers=0).fingerprint() == first
    assert Shards(str(packed), size=4).fingerprint() != first
    (folder / "cats" / "001.txt").write_text("another caption")
    pack(folder, tmp_path / "other", labels=True, shard_bytes=16 << 10)
    assert Shards(str(tmp_path / "other")).fingerprint() != first


def damage(index: bytes, how: str) -> bytes:
    """Return a damaged or hostile copy of an index."""
    if how == "cut":
        return index[:-100]
    if how == "format":
        return index.replace(b"diffkit-shards-1", b"diffkit-shards-9")
    if how == "path":
        return index.replace(b"shard-000000.tar", b"../../../evl.tar")
    size = int.from_bytes(index[:8], "little")
    at = json.loads(index[8 : 8 + size])["offset"]["data_offsets"][0] + 8 + size
    return index[: at + 5] + b"\x7f" + index[at + 6 :]


@pytest.mark.parametrize("how", ["cut", "format", "path", "offset"])
def test_damaged_and_hostile_indices(packed, how) -> None:
    (packed / INDEX).write_bytes(damage((packed / INDEX).read_bytes(), how))
    with pytest.raises(DataError, match=r"index.safetensors is damaged") as caught:
        load_index(str(packed))
    assert caught.value.code == "DK302"


GOOD = [
    ("./a/0001.seg.txt", b"x"),
    ("./a/0001.jpg", png(1)),
    ("./a/0001.cls", b"7"),
    ("b/2.png", png(2)),
    ("b/2.cls", b"-3"),
]


def test_shards_of_other_programs(tmp_path) -> None:
    """Unknown suffixes are left out, and a class is a number in a .cls file."""
    write_tar(tmp_path / "0.tar", GOOD)
    assert build_index(str(tmp_path)) == 2
    data = Shards(str(tmp_path), labels=True, held_out=1)
    assert data.spec.class_names == ("-3", "7")


@pytest.mark.parametrize(
    ("files", "code", "text"),
    [
        ([*GOOD, ("c.png", png(3))], "DK316", "example 'c' has picture, not picture and cls"),
        ([*GOOD, ("./a/0001.png", png(3))], "DK316", "'./a/0001' are not neighbours"),
        ([("a.png", png(3)), ("a.jpg", png(3))], "DK316", "two files of kind picture"),
        ([("a.txt", b"x")], "DK316", "example 'a' has txt, not picture"),
        ([("a.bin", b"x")], "DK316", "hold no example"),
        ([("a.png", png(1)), ("a.txt", b"\xff")], "DK316", "not UTF-8"),
        ([("a.png", png(1)), ("a.json", b"[1]")], "DK316", "not a JSON object"),
        ([("a.png", b"no picture")], "DK309", "'a' cannot be used"),
        ([("a.png", b"")], "DK309", "empty file"),
    ],
)
def test_shards_that_hold_no_examples(tmp_path, files, code, text) -> None:
    write_tar(tmp_path / "0.tar", files)
    with pytest.raises(DataError, match=text) as caught:
        build_index(str(tmp_path))
    assert caught.value.code == code
    assert not (tmp_path / INDEX).exists()


def test_what_is_no_shard(tmp_path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"damaged")
    with pytest.raises(DataError) as caught:
        build_index(str(tmp_path))
    assert "x.tar.gz is compressed" in caught.value.notes[0]
    (tmp_path / "y.tar").write_bytes(b"damaged" * 300)
    with pytest.raises(DataError, match="not a whole tar"):
        build_index(str(tmp_path))
    with pytest.raises(DataError, match=r"no \.tar file"):
        build_index(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="cannot be opened"):
        build_index("unknown-protocol://x")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"labels": "n"}, r"the field json\.n is absent"),
        ({"classes": {"a": "list"}}, r"the field json\.list is absent"),
        ({"classes": {"a": "age"}}, "fractions"),
        ({"numbers": {"a": "kind"}}, "holds texts"),
        ({"captions": "age"}, "holds numbers"),
    ],
)
def test_fields_that_do_not_fit(packed, options, text) -> None:
    with pytest.raises(DataError, match=text) as caught:
        Shards(str(packed), **options).spec  # noqa: B018 - a property
    assert caught.value.code == "DK316"


def test_options_and_sizes_that_do_not_fit(tmp_path) -> None:
    with pytest.raises(ValueError, match="two options state the condition label"):
        Shards("x", labels=True, classes={"label": "kind"})
    write_tar(tmp_path / "0.tar", [("a.png", png(1)), ("b.png", png(2, 7, 7))])
    build_index(str(tmp_path))
    with pytest.raises(DataError, match="several sizes") as caught:
        Shards(str(tmp_path)).spec  # noqa: B018 - a property
    assert caught.value.code == "DK306"
    assert Shards(str(tmp_path), size=4, held_out=1).spec.shape == (3, 4, 4)


def test_the_command(folder, tmp_path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(command, [str(folder), str(out), "--labels"])
    assert result.exit_code == 0, result.output
    assert f"{out}: 30 examples   data: {{name: shards, path: {out}}}" in result.output
    before = (out / INDEX).read_bytes()
    (out / INDEX).unlink()
    assert CliRunner().invoke(command, [str(out)]).exit_code == 0
    assert load_index(str(out)).shards == ((("shard-000000.tar"), (out / "shard-000000.tar").stat().st_size),)
    assert (out / INDEX).stat().st_size <= len(before)
