"""A folder of pictures, among them unusable ones (reliability: corrupt, empty, CMYK, 16-bit, bombs)."""

import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from diffkit.basics.data import files, images
from diffkit.basics.data.images import (
    Images,
    PictureError,
    PictureFiles,
    Reader,
    replace_unusable,
)
from diffkit.basics.data.pictures import find_pictures, picture_size, read_picture, without_warnings
from diffkit.data import DataSpec, InMemorySplit
from diffkit.errors import DataError


def picture(i: int, height: int = 6, width: int = 5) -> Image.Image:
    rng = np.random.default_rng(i)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_size(width: int, height: int) -> bytes:
    """A tiny file that claims any number of pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


ZOO = {
    "empty.png": (b"", "empty"),
    "text.jpg": (b"this is no image", "not a PNG"),
    "truncated.png": (encoded(picture(0, 60, 60), "PNG")[:-4000], "damaged"),
    "truncated.jpg": (encoded(picture(0, 60, 60), "JPEG")[:-1000], "damaged"),
    "header-only.png": (encoded(picture(0), "PNG")[:20], "damaged|no PNG"),
    "bomb.png": (png_of_size(20_000, 20_000), "pixels"),
    "large.png": (png_of_size(10_000, 9_000), "pixels"),
    "gif.png": (encoded(picture(0), "GIF"), "not a PNG"),
    "negative.png": (b"II*\0" + b"\0" * 50, "not a PNG"),
}


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        picture(i).save(tmp_path / f"{i:02}.png")
    return tmp_path


def failure(data) -> DataError:
    with pytest.raises(DataError) as raised:
        data.split("train")
    assert raised.value.fix
    return raised.value


def rows(split) -> list[bytes]:
    return [split[i][0].numpy().tobytes() for i in range(len(split))]


@pytest.mark.parametrize("resident", ["always", "never"])
def test_pictures_come_out_as_they_are(folder, resident):
    data = Images(str(folder), resident=resident)
    assert data.spec == DataSpec(3, (6, 5), None, bounded=True, bins=256)
    wanted = sorted(np.asarray(picture(i)).transpose(2, 0, 1).tobytes() for i in range(20))
    assert sorted(rows(data.split("train")) + rows(data.split("held-out"))) == wanted
    x = data.split("train")[0][0]
    assert torch.equal(data.to_storage(data.to_model_range(x)), x)


def test_streamed_equals_resident(folder):
    for options in ({}, {"size": 4}, {"color": "grey"}, {"held_out": 7}):
        for part in ("train", "held-out"):
            kept = Images(str(folder), resident="always", **options).split(part)
            read = Images(str(folder), resident="never", **options).split(part)
            assert isinstance(kept, InMemorySplit)
            assert isinstance(read, PictureFiles)
            assert rows(kept) == rows(read)


def test_labels_are_folder_names(tmp_path):
    for i, kind in enumerate(["dogs", "cats", "birds/small", "birds/large"]):
        (tmp_path / kind).mkdir(parents=True)
        for j in range(5):
            picture(10 * i + j).save(tmp_path / kind / f"{j}.png")
    for resident in ("always", "never"):
        data = Images(str(tmp_path), labels=True, resident=resident)
        assert data.spec.classes == 3
        assert data.spec.class_names == ("birds", "cats", "dogs")
        seen = {}
        for part in ("train", "held-out"):
            for i in range(len(data.split(part))):
                x, cond = data.split(part)[i]
                seen[x.numpy().tobytes()] = int(cond["label"])
        wanted = [2] * 5 + [1] * 5 + [0] * 10
        keys = [np.asarray(picture(10 * i + j)).transpose(2, 0, 1).tobytes() for i in range(4) for j in range(5)]
        assert [seen[key] for key in keys] == wanted
    picture(99).save(tmp_path / "loose.png")
    assert failure(Images(str(tmp_path), labels=True)).code == "DK305"
    assert Images(str(tmp_path)).spec.classes is None


def test_size_scales_the_shorter_side_and_crops_the_centre(tmp_path):
    striped = np.zeros((8, 32, 3), np.uint8)
    striped[:, 12:20] = 255
    Image.fromarray(striped).save(tmp_path / "wide.png")
    assert read_picture(tmp_path / "wide.png", 8, "rgb").eq(255).all()
    assert read_picture(tmp_path / "wide.png", 4, "grey").shape == (1, 4, 4)
    assert read_picture(tmp_path / "wide.png", 16, "rgb").shape == (3, 16, 16)


def test_unequal_sizes_need_size(folder):
    picture(0, 9, 9).save(folder / "odd.png")
    error = failure(Images(str(folder)))
    assert error.code == "DK306"
    assert "odd.png: 9x9" in error.render()
    assert Images(str(folder), size=5).split("train")[0][0].shape == (3, 5, 5)


def test_modes_are_converted_without_loss_of_meaning(tmp_path):
    half = np.full((4, 4), 128, np.uint8)
    deep = (half.astype(np.uint16) * 257).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "sixteen.png")
    Image.fromarray(half).save(tmp_path / "grey.png")
    Image.merge("CMYK", [Image.new("L", (4, 4), c) for c in (0, 0, 0, 127)]).save(tmp_path / "cmyk.jpg", quality=100)
    Image.merge("RGBA", [Image.new("L", (4, 4), c) for c in (0, 0, 0, 127)]).save(tmp_path / "clear.png")
    Image.new("P", (4, 4), 0).save(tmp_path / "palette.png", transparency=0)
    Image.new("1", (4, 4), 1).save(tmp_path / "bit.png")
    for name, value in [("sixteen", 128), ("grey", 128), ("cmyk", 128), ("clear", 128), ("palette", 255), ("bit", 255)]:
        path = next(tmp_path.glob(f"{name}.*"))
        for color, channels in (("rgb", 3), ("grey", 1)):
            x = read_picture(path, None, color)
            assert x.shape == (channels, 4, 4)
            assert (x.int() - value).abs().max() <= 1, name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pictures_are_turned_upright(tmp_path, orientation, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = picture(0, 6, 5).convert(mode)
    source.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    x = read_picture(tmp_path / "turned.png", None, "rgb")
    assert picture_size(tmp_path / "turned.png") == wanted.shape[:2]
    assert np.array_equal(x.permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize("name", ZOO)
def test_unusable_files_have_a_reason(tmp_path, name):
    raw, why = ZOO[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(PictureError, match=why), without_warnings():
        read_picture(tmp_path / name, None, "rgb")


@pytest.mark.filterwarnings("error")
def test_all_unusable_files_are_reported_at_once(folder):
    for name, (raw, _) in ZOO.items():
        (folder / name).write_bytes(raw)
    error = failure(Images(str(folder), size=5))
    assert error.code == "DK309"
    assert f"{len(ZOO)} of {20 + len(ZOO)}" in error.message
    assert all(any(note.startswith(f"{name}: ") for note in error.notes) for name in ZOO)


@pytest.mark.parametrize("resident", ["always", "never"])
def test_a_skipped_picture_moves_no_other(folder, resident):
    before = [rows(Images(str(folder), resident=resident).split(part)) for part in ("train", "held-out")]
    spoiled = picture(3)
    (folder / "03.png").write_bytes(b"spoiled")
    data = Images(str(folder), resident=resident, errors="skip")
    with pytest.warns(UserWarning, match=r"skipped 1 of 20 images: 03.png: not a PNG"):
        after = [rows(data.split(part)) for part in ("train", "held-out")]
    gone = np.asarray(spoiled).transpose(2, 0, 1).tobytes()
    for old, new in zip(before, after):
        assert len(old) == len(new)
        for i in range(len(old)):
            assert new[i] == (old[(i + 1) % len(old)] if old[i] == gone else old[i])


def test_too_many_skipped(folder):
    for i in range(3):
        (folder / f"0{i}.png").write_bytes(b"spoiled")
    error = failure(Images(str(folder), errors="skip", max_skipped=2))
    assert error.code == "DK309"
    assert "more than data.max_skipped = 2" in error.message
    with pytest.warns(UserWarning, match="skipped 3"):
        assert Images(str(folder), errors="skip", max_skipped=3).split("train")


@pytest.mark.filterwarnings("ignore:skipped 1 of 20")
def test_damage_found_while_streaming(folder):
    """Headers are examined before training; what only decoding shows is met by the same policy."""
    raw = (folder / "05.png").read_bytes()
    (folder / "05.png").write_bytes(raw[:60] + b"\0\0\0\0" + raw[64:])
    with pytest.raises(DataError, match="1 of 19 images"):
        Images(str(folder), held_out=1, resident="never").split("train")  # the summary reads it
    reader = Reader(folder, None, "rgb")
    split = PictureFiles(reader, tuple(f"{i:02}.png" for i in range(19)), {}, ((3, 6, 5),), "error", 1)
    place = split.names.index("05.png")
    with pytest.raises(DataError, match="1 of 19 images") as raised:
        split[place]
    assert raised.value.code == "DK309"
    skipping = Images(str(folder), held_out=1, resident="never", errors="skip").split("train")
    assert torch.equal(skipping[place][0], skipping[place + 1][0])
    assert torch.equal(skipping[place][0], skipping[place][0])
    (folder / "06.png").unlink()
    strict = PictureFiles(reader, ("05.png", "06.png", "07.png"), {}, ((3, 6, 5),), "skip", 1)
    with pytest.raises(DataError, match="max_skipped = 1"):
        strict[0]


def test_nothing_usable(tmp_path):
    assert failure(Images(str(tmp_path / "none"))).code == "DK301"
    assert failure(Images(str(tmp_path))).code == "DK304"
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "pictures.zip").write_bytes(b"")
    error = failure(Images(str(tmp_path)))
    assert "'.txt': 1" in error.render()
    assert "unpack it first" in error.render()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    assert failure(Images(str(tmp_path))).code == "DK309"
    for name in ("a.png", "b.png"):
        (tmp_path / name).unlink()
    picture(0).save(tmp_path / "one.png")
    assert failure(Images(str(tmp_path))).code == "DK304"


def test_order_and_hidden_files(tmp_path):
    for name in ("b.PNG", "a.jpeg", ".hidden.png", "note.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "c.png").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.webp").touch()
    found = find_pictures(tmp_path)
    assert found.names == ["a.jpeg", "b.PNG", "sub/c.webp"]
    assert found.ignored == {"hidden": 2, ".txt": 1}
    assert not found.left_out


def test_large_sets_stream(folder, monkeypatch):
    monkeypatch.setattr(files, "MAX_RESIDENT_BYTES", 20 * 6 * 5 * 3 - 1)
    assert isinstance(Images(str(folder)).split("train"), PictureFiles)
    monkeypatch.setattr(files, "MAX_RESIDENT_BYTES", 20 * 6 * 5 * 3)
    assert isinstance(Images(str(folder)).split("train"), InMemorySplit)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_streams_work_in_loader_workers(folder):
    split = Images(str(folder), resident="never").split("train")
    assert len(pickle.loads(pickle.dumps(split))) == len(split)  # noqa: S301 - as a spawned worker does
    loader = DataLoader(split, batch_size=None, num_workers=2)
    assert [x.numpy().tobytes() for x, _ in loader] == rows(split)


def test_long_reports_end(monkeypatch):
    monkeypatch.setattr(images, "MAX_LISTED", 2)
    error = images.unusable({f"{i}.png": "empty file" for i in range(5)}, 9)
    assert error.notes == ("0.png: empty file", "1.png: empty file", "and 3 more")


def test_replace_unusable():
    assert replace_unusable([True, False, True, False], [0, 1, 2, 3]) == [0, 2, 2, 0]


@pytest.mark.parametrize("resident", ["always", "never"])
@pytest.mark.parametrize("damage", [b"", encoded(picture(0), "PNG")[:60]])
@pytest.mark.filterwarnings("ignore:skipped 1 of 21")
def test_one_unusable_picture_can_have_any_name(folder, resident, damage):
    """Also that of the only held-out picture: the usable pictures are divided then."""
    for name in (f"broken{i}.png" for i in range(20)):
        (folder / name).write_bytes(damage)
        data = Images(str(folder), errors="skip", resident=resident, held_out=1)
        parts = [set(rows(data.split(part))) for part in ("train", "held-out")]
        assert len(parts[1]) == 1
        assert not parts[0] & parts[1]
        (folder / name).unlink()


def test_files_that_are_left_out_are_counted(folder):
    """Fault A7: other suffixes, broken links, pipes; a JPEG may be called .jfif, and a class may be a link."""
    for i in range(3):
        picture(i).save(folder / f"{i}.tif")
        picture(i).save(folder / f"{i}.gif")
    picture(3).save(folder / "3.jfif", "JPEG", quality=100)
    (folder / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    data = Images(str(folder))
    with pytest.warns(UserWarning, match="8 files or folders are left out: 3 .tif, 3 .gif") as warned:
        assert len(data.split("train")) + len(data.split("held-out")) == 21
    assert "1 broken links" in str(warned[0].message)
    assert "1 pipes, sockets or devices" in str(warned[0].message)
    assert "left out: 3 .tif" in data.summary
    assert "shape (3, 6, 5); values 0 to 255, std 7" in data.summary


def test_classes_that_are_links_are_read_and_empty_ones_reported(tmp_path):
    for kind in ("cats", "elsewhere/dogs", "more"):
        (tmp_path / kind).mkdir(parents=True)
        for i in range(6):
            picture(i + len(kind)).save(tmp_path / kind / f"{i}.png")
    root = tmp_path / "root"
    (root / "empty").mkdir(parents=True)
    for kind, target in (("cats", "cats"), ("dogs", "elsewhere/dogs"), ("again", "cats"), ("loop", "root")):
        (root / kind).symlink_to(tmp_path / target)
    data = Images(str(root), labels=True, held_out=2)
    with pytest.warns(UserWarning, match="2 links to a folder that is read already") as warned:
        data.split("train")
    assert "folder 'empty' without a picture" in str(warned[0].message)
    assert data.spec.class_names == ("again", "dogs")
    assert "2 classes (again: " in data.summary


@pytest.mark.parametrize("bits", [12, 1])
def test_pictures_that_use_few_of_their_values_are_reported(tmp_path, bits):
    """Fault A7: 12-bit values in 16 bits become nearly black pictures, as do masks of 0 and 1."""
    draw = np.random.default_rng(0)
    for i in range(4):
        values = draw.integers(0, 2**bits, (6, 6)).astype(np.uint16 if bits == 12 else np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    with pytest.warns(UserWarning, match="use a small part of their range"):
        Images(str(tmp_path), color="grey", held_out=1).split("train")


def test_options_without_effect_are_refused(tmp_path):
    with pytest.raises(ValueError, match="max_skipped has no effect"):
        Images(str(tmp_path), max_skipped=3)


def test_fingerprint(folder):
    data = Images(str(folder))
    before = data.fingerprint()
    assert Images(str(folder), workers=7).fingerprint() == before
    assert Images(str(folder), size=5).fingerprint() != before
    (folder / "00.png").rename(folder / "zz.png")
    assert Images(str(folder)).fingerprint() != before


@pytest.mark.data
def test_photographs_of_clothes():
    root = Path(os.environ.get("DIFFKIT_DATA") or "none") / "clothing64" / "images"
    if not root.is_dir():
        pytest.skip("DIFFKIT_DATA names no folder that holds clothing64")
    data = Images(str(root), size=32, labels=True)
    assert data.spec.classes == 10
    assert len(data.split("train")) + len(data.split("held-out")) == 2700
    assert data.split("train").x.shape[1:] == (3, 32, 32)
    assert torch.bincount(data.split("train").cond["label"]).min() > 50


def test_a_fingerprint_is_kept_between_processes(tmp_path, monkeypatch) -> None:
    """The files are read again if one of them, its content or an option changed; a damaged cache is written again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "MIN_CACHED", 5)
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(6):
        picture(i).save(folder / f"{i}.png")
    read: list[int] = []
    chunks = files._file_chunks
    monkeypatch.setattr(files, "_file_chunks", lambda *arguments: read.append(1) or chunks(*arguments))

    def start(**options: object) -> tuple[str, int]:
        read.clear()
        return Images(str(folder), **options).fingerprint(), len(read)

    first = start()
    assert start() == first  # written a moment ago: they may change again
    monkeypatch.setattr(files, "RECENT_NS", 0)
    assert start() == first
    assert start() == (first[0], 0)
    (cache,) = (tmp_path / "cache" / "diffkit").glob("fingerprint-*")
    for damage in (b"{", b"[1]", b'{"00": 3}'):
        cache.write_bytes(damage)
        assert start() == first
    assert start(color="grey")[0] != first[0]
    old = (folder / "3.png").stat()
    content = bytearray((folder / "3.png").read_bytes())
    content[-1] ^= 1
    (folder / "3.png").write_bytes(content)
    os.utime(folder / "3.png", ns=(old.st_atime_ns, old.st_mtime_ns))  # the same size and time of the content
    assert start()[1] == 1
    assert start()[0] != first[0]


def test_sizes_are_kept_between_processes(tmp_path, monkeypatch) -> None:
    """The second start reads the headers of changed files only; a damaged cache is written again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "MIN_CACHED", 5)
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(12):
        picture(i).save(folder / f"{i:02}.png")
        os.utime(folder / f"{i:02}.png", (10**9, 10**9))
    read: list[str] = []
    header = images.picture_size
    monkeypatch.setattr(images, "picture_size", lambda path: read.append(path.name) or header(path))

    def start() -> tuple[int, ...]:
        read.clear()
        return Images(str(folder), resident="never").spec.shape

    assert (start(), len(read)) == ((3, 6, 5), 12)
    assert (start(), read) == ((3, 6, 5), [])
    picture(3).save(folder / "03.png")
    assert (start(), read) == ((3, 6, 5), ["03.png"])
    assert (start(), read) == ((3, 6, 5), ["03.png"])  # written a moment ago: it may change again
    (cache,) = (tmp_path / "cache" / "diffkit").iterdir()
    for damage in (b"{", b"[1]", b'{"00.png": 3}'):
        cache.write_bytes(damage)
        assert start() == (3, 6, 5)
    (folder / "04.png").unlink()
    assert (start(), "04.png" in read) == ((3, 6, 5), False)
