"""Hostile data files: each is read, or refused with a named error and a fix, quickly and in little memory."""

from __future__ import annotations

import io
import os
import random
import resource
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffkit import Data, build
from diffkit.errors import DiffkitError, plain

SEED = 20261128
SECONDS = 5.0
LIMIT_BYTES = 2 << 30
"""Twice the size up to which an array in an .npz file is read."""
Case = tuple[str, Callable[[Path], None], str]
"""A name, a function that writes files into an empty folder, and what is read: a component and its path."""

BYTES = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
ODD_TYPES = ("?", "<u2", ">u2", "<i1", ">i8", "<f2", ">f4", "<f8", "<g", "<c8", "S3", "U3", "V5", "<M8[s]", "<m8[ms]")
ODD_SHAPES = ((), (0,), (12,), (1, 4), (0, 4), (12, 0), (12, 4), (12, 1, 4), (12, 2, 2, 2, 2), (2,) * 12)
ODD_NAMES = (
    "\x1b[2J",
    "images\n",
    "../images",
    "",
    "a" * 400,
    "\u202egnp",
    "images.npy.npy",
    "CON",
    "\udcff",
    "[bold]",
)
SHAPES_OF_HEADERS = (
    *(
        "(10**12,4)",
        "(-12,-36)",
        "(12,-1)",
        "(True,4)",
        "(1.5,4)",
        "(12,6",
        "((12,),6)",
        "12",
        "None",
        "()",
        "(2**63,2)",
    ),
    *("(" * 900 + ")" * 900, "(" + "9" * 5000 + ",)", "(0,10**30)", "(1,)*10**9", "__import__('os').getpid()"),
)
DESCR = (
    "'<f4'",
    "'|O'",
    "'<f4,<f4'",
    "[('a','<f4')]",
    "('<f4',(3,))",
    "'<U0'",
    "'V0'",
    "'\\x1b[2J'",
    "'<f99'",
    "7",
    "[]",
)


def npy(array: np.ndarray) -> bytes:
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def header(descr: str, shape: str, body: bytes = b"\0" * 288, version: int = 1) -> bytes:
    """The bytes of an .npy file with any text as header."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode("utf-8", "surrogatepass")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes((version, 0)) + length + text + body


def packed(name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The bytes of an .npz file with one member."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")
        archive.writestr(name, content)
    return file.getvalue()


def png(width: int, height: int, body: bytes = b"\0" * 400, kind: int = 0, extra: bytes = b"") -> bytes:
    """The bytes of a PNG file whose header declares any size and kind of pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def encoded(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(BYTES[0]).convert(mode).save(file, kind)
    return file.getvalue()


def mutated(whole: bytes, draw: random.Random) -> bytes:
    """Change a file as disks, downloads and attackers do: cut, flip bits, overwrite, repeat or insert."""
    raw = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(raw)) if raw else 0
        match draw.randrange(5):
            case 0:
                del raw[at:]
            case 1 if raw:
                raw[at] ^= 1 << draw.randrange(8)
            case 2:
                raw[at : at + 4] = draw.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
            case 3:
                raw[at:at] = raw[: draw.randrange(1 + len(raw))]
            case _:
                del raw[at : at + draw.randrange(1, 40)]
    return bytes(raw)


def bomb(size: int, stated: int | None = None) -> bytes:
    """An .npz file of a sound array of zeros that unpacks to `size` bytes, or only states another size."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        shape = f"({(stated or size) >> 20}, 1024, 1024, 1)"
        archive.writestr("images.npy", header("'|u1'", shape, bytes(size)))
        archive.filelist[0].file_size = stated or size + 128
    return file.getvalue()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def special(kind: str, name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / name
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "device":
                path.symlink_to("/dev/zero")
            case "loop":
                path.symlink_to(path.name)
            case "parent":
                path.symlink_to(folder)

    return make


def array_cases() -> Iterator[Case]:
    contents: dict[str, bytes] = {f"type {kind}": npy(np.zeros((12, 4), kind)) for kind in ODD_TYPES}
    contents |= {f"shape {shape}": npy(np.ones(shape, "f4")) for shape in ODD_SHAPES}
    contents |= {f"header {shape[:20]}": header("'<f4'", shape) for shape in SHAPES_OF_HEADERS}
    contents |= {f"descr {descr}": header(descr, "(12, 6)") for descr in DESCR}
    contents |= {f"version {version}": header("'<f4'", "(12, 6)", version=version) for version in (0, 2, 3, 255)}
    contents |= {
        "objects": npy(np.array([{}, []] * 6, dtype=object)),
        "records": npy(np.zeros(12, dtype=[("\x1b[2J", "f4"), ("b", "O")])),
        "fortran": npy(np.asfortranarray(BYTES)),
        "negative strides": npy(BYTES[:, ::-1]),
        "nan": npy(np.full((12, 4), np.nan)),
        "infinite": npy(np.full((12, 4), np.inf)),
        "large": npy(np.full((12, 4), 1e300)),
        "text": b"label,x\n0,1\n" * 30,
        "json": b"[" * 100_000,
        "empty": b"",
        "pickle": b"\x80\x04]\x94.",
    }
    for name, content in contents.items():
        yield f"npy: {name}", write("images.npy", content), "arrays images.npy"
        yield f"npz: {name}", write("x.npz", packed("images.npy", content)), "arrays x.npz"
    for name in ODD_NAMES:
        yield (
            f"member {name!r}",
            write("x.npz", packed(f"{name}.npy".replace("\udcff", "\xff"), npy(BYTES))),
            "arrays x.npz",
        )
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"method {method}", write("x.npz", packed("images.npy", npy(BYTES), method)), "arrays x.npz"
    yield "bomb of 100 MiB", lambda folder: write("x.npz", bomb(100 << 20))(folder), "arrays x.npz"
    yield "bomb of 3 GiB", write("x.npz", bomb(1 << 20, 3 << 30)), "arrays x.npz"
    for kind in ("pipe", "folder", "device", "loop"):
        for target, read in (
            ("images.npy", "arrays images.npy"),
            ("images.npy", "arrays ."),
            ("x.npz", "arrays x.npz"),
        ):
            yield f"{kind} as {read}", special(kind, target), read


def picture_cases() -> Iterator[Case]:
    contents = {
        "huge": png(60_000, 60_000),
        "wide": png(2**31 - 1, 1),
        "flat": png(0, 5),
        "most pixels": png(8000, 8000),
        "text bomb": png(4, 4, extra=b"\0\0\0\x04tEXt" + b"\xff" * 8),
        "kind": png(4, 4, kind=5),
        "palette": png(4, 4, kind=3),
        "gif": encoded("GIF"),
        "empty": b"",
        "pickle": b"\x80\x04]\x94.",
    }
    for name, content in contents.items():
        yield f"picture: {name}", write("0.png", content), "images ."
    for kind in ("pipe", "folder", "device", "loop", "parent"):
        yield f"{kind} as picture", special(kind, "0.png"), "images ."
        yield f"{kind} as the folder", special(kind, "pictures"), "images pictures"
    for name in ("\x1b[2J.png", "a\nb.png", "\u202egnp.png", os.fsdecode(b"\xff.png"), "x." + "y" * 240):
        yield f"picture {name!r}", write(name, b"\0"), "images ."


def label_cases() -> Iterator[Case]:
    odd = [np.arange(11), np.full(12, -1), np.full(12, 2**62), np.zeros(12), np.zeros((12, 1), int), np.array(3)]
    odd += [
        np.array(list("abcdefghijkl")),
        np.zeros(12, complex),
        np.zeros(12, "M8[s]"),
        np.zeros(0, int),
        np.arange(12) > 5,
    ]
    for number, labels in enumerate(odd):

        def make(folder: Path, labels: np.ndarray = labels) -> None:
            np.savez(folder / "x.npz", images=BYTES, labels=labels)

        yield f"labels {number}", make, "arrays x.npz labels"
    for suffix, content in (
        ("csv", b"a,b\n1,2\n"),
        ("json", b'{"labels": [0, 1]}'),
        ("csv", b"\0" * 99),
        ("json", b"[" * 9999),
    ):
        yield f"labels.{suffix}", write(f"labels.{suffix}", content), f"arrays labels.{suffix}"
        yield f"labels.{suffix} beside nothing", write(f"labels.{suffix}", content), "arrays . labels"


def mutants(count: int) -> Iterator[Case]:
    """Mutated sound files: arrays, packed arrays and pictures of each format."""
    draw = random.Random(SEED)
    sound = {
        "images.npy": npy(BYTES),
        "x.npz": packed("images.npy", npy(BYTES)),
        **{
            f"0.{suffix}": encoded(kind)
            for suffix, kind in (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("bmp", "BMP"))
        },
    }
    for number in range(count):
        name = draw.choice(list(sound))
        read = f"arrays {name}" if name[0] in "ix" else "images ."
        yield f"mutant {number} of {name}", write(name, mutated(sound[name], draw)), read


HAND = [*array_cases(), *picture_cases(), *label_cases()]


def read_all(folder: Path, read: str) -> str:
    """Read data to the end as a run does; return the rendered error, or an empty text."""
    component, path, *labels = read.split()
    options = {"labels": "labels"} if labels else {"held_out": 1}
    target = str(folder / path)
    if component == "images":
        for i in range(3):  # sound ones beside it
            (folder / path).is_dir() and Image.fromarray(BYTES[i]).save(folder / path / f"sound{i}.png")
        options = {"held_out": 1, "size": 6}
    try:
        data: Data = build("data", component, path=target, **options)
        for part in ("train", "held-out"):
            split = data.split(part)
            for i in range(len(split)):
                split[i]
        data.fingerprint()
    except DiffkitError as error:
        return error.render()
    return ""


def attempt(folder: Path, case: Case) -> None:
    name, make, read = case
    folder.mkdir()
    make(folder)
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        error = read_all(folder, read)
    assert time.monotonic() - began < SECONDS, f"{name} took {time.monotonic() - began:.1f} s"
    for text in (error, *(str(one.message) for one in warned)):
        assert text == plain(text), name
    assert not error or (error.startswith("error[DK3") and ("  fix: " in error or "  allowed: " in error)), error


def test_hostile_data_is_refused_by_name(tmp_path: Path) -> None:
    """A part of the cases of each kind; `make faults` reads all of them."""
    cases = [case for case in HAND if "bomb of" not in case[0]]
    for number, case in enumerate([*random.Random(SEED).sample(cases, 30), *mutants(30)]):
        attempt(tmp_path / str(number), case)


@pytest.mark.slow
def test_all_hostile_data_within_limits(tmp_path: Path) -> None:
    """In a process of its own, whose largest memory is measured."""
    code = "import sys; from tests.faults.test_hostile_data import main; main(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stdout + ended.stderr


def main(folder: str) -> None:
    """Read all cases; the first fault ends the process, as does too much memory."""
    cases = [*HAND, *mutants(600 - len(HAND))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, case in enumerate(cases):
        attempt(Path(folder) / str(number), case)
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert used < LIMIT_BYTES, f"{len(cases)} files took {used >> 20} MB"
    assert len(cases) >= 200
