"""The index of tar shards: the place, the length and the checksum of each file of each example, and small values.

Shards are plain tar files in the layout of webdataset: the files of an example are neighbours and have one name up to
the first dot, such as `0001.png`, `0001.txt` (a caption), `0001.json` and `0001.cls` (a class). The index is one
safetensors file beside them, which is mapped, so that its size does not matter to the memory of a process.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b, sha256
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffkit import DataError

from .pictures import SUFFIXES, PictureError, picture_size, without_warnings

FORMAT = "diffkit-shards-1"
INDEX = "index.safetensors"
PICTURE, CAPTION, FIELDS, CLASS = "picture", "txt", "json", "cls"
MEMBERS = (PICTURE, CAPTION, FIELDS, CLASS)
MAX_FILE_BYTES = 256 << 20
"""Size of one file of an example."""
MAX_NAMES = 100_000
"""Different texts up to which a field can be used as classes; above, as captions only."""
MAX_SIZES = 5
"""Sizes of pictures that the index counts apart."""
Report = Callable[[int, int], None]
"""Receives the bytes that are done, and those of the whole task."""


def no_report(done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Column:
    """The values of a field of all examples: numbers, classes with their names, or texts of at most `length` bytes.

    The texts themselves stay in the shards, so that `rows` of texts have the number of the class, or nothing if there
    are more than `MAX_NAMES`.
    """

    numeric: bool
    names: tuple[str, ...]
    length: int
    rows: Tensor | None


@dataclass(frozen=True)
class Index:
    """The examples of a folder of shards.

    Args:
        place: the folder or its URL.
        shards: name and size in bytes of each shard.
        members: the files that each example has, of `MEMBERS`.
        sizes: up to `MAX_SIZES` sizes (H, W) of pictures.
        columns: the fields of all examples: `cls`, `txt` and those of the JSON files.
        shard: the shard of each example: (N,) int32.
        offset: start of each file in its shard: (N, members) int64.
        length: bytes of each file: (N, members) int32.
        crc: CRC-32 of each file, its bits as int32: (N, members).
        rank: a hash of the name of each example, which decides whether it is held out: (N,) int64.
        digest: SHA-256 of the index.
        plan: a hash of the files that were packed, or empty.
        local: the path of the folder if it is a local one.
    """

    place: str
    shards: tuple[tuple[str, int], ...]
    members: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    columns: Mapping[str, Column]
    shard: Tensor
    offset: Tensor
    length: Tensor
    crc: Tensor
    rank: Tensor
    digest: str = ""
    plan: str = ""
    local: str = ""

    def __len__(self) -> int:
        return len(self.shard)

    def read(self, row: int, member: str) -> bytes:
        """Read one file of an example.

        Args:
            row: number of the example.
            member: the file, of `members`.

        Returns:
            Its content.

        Raises:
            DataError: DK315, it is not the file that was indexed; DK302, the shard cannot be read.
        """
        at = self.members.index(member)
        start, length = int(self.offset[row, at]), int(self.length[row, at])
        name = self.shards[int(self.shard[row])][0]
        try:
            if self.local:
                with open(f"{self.local}/{name}", "rb", buffering=0) as file:
                    content = os.pread(file.fileno(), length, start)
            else:
                system, root = open_place(self.place)
                content = system.cat_file(f"{root}/{name}", start=start, end=start + length)
        except Exception as error:
            message = f"{self.place}/{name} cannot be read: {error or type(error).__name__}"
            raise DataError(message, code="DK302", fix="get the shard again") from error
        if len(content) != length or zlib.crc32(content) != int(self.crc[row, at]) & 0xFFFFFFFF:
            raise changed(self.place, f"{name} differs from its index at byte {start}")
        return content


def open_place(place: str) -> tuple[Any, str]:
    """Return the file system of fsspec and the path below it. Raises DataError DK301 for an unknown protocol."""
    try:
        system, root = fsspec.core.url_to_fs(os.path.expanduser(place))
    except (ImportError, ValueError) as error:
        message = f"{place} cannot be opened: {error}"
        raise DataError(
            message, code="DK301", fix='python -m pip install "diffkit[streams]" and that package'
        ) from error
    return system, str(root).rstrip("/")


def changed(place: str, reason: str) -> DataError:
    """Build the error DK315 for shards that differ from their index."""
    fix = f"restore the shard, or index the shards as they are: diffkit shards {place}"
    return DataError(f"{place}: a shard changed after it was indexed: {reason}", code="DK315", fix=fix)


def load_index(place: str) -> Index:
    """Open the index of a folder of shards, and compare the size of each shard.

    Args:
        place: the folder or its URL.

    Returns:
        The index; its tensors are mapped from the disk.

    Raises:
        DataError: DK301, there is no index; DK302, it is damaged; DK315, the size of a shard differs.
    """
    system, root = open_place(place)
    found = {name: info["size"] for name, info in system.find(root, detail=True).items()} if system.exists(root) else {}
    if f"{root}/{INDEX}" not in found:
        raise DataError(
            f"{place} holds no {INDEX}",
            code="DK301",
            choices="a folder or a URL with shards and their index: data.path",
            fix=f"index the shards there: diffkit shards {place}",
        )
    try:
        with TemporaryDirectory(prefix="diffkit-index-") as folder:
            file = f"{root}/{INDEX}"
            if not isinstance(system, LocalFileSystem):
                system.get_file(file, f"{folder}/{INDEX}")  # the mapping stays after the file is removed
                file = f"{folder}/{INDEX}"
            local = root if isinstance(system, LocalFileSystem) else ""
            index = replace(_parse(place, Path(file)), local=local)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        message = f"{place}/{INDEX} is damaged: {error}"
        raise DataError(message, code="DK302", fix=f"write it again: diffkit shards {place}") from error
    for name, size in index.shards:
        if (now := found.get(f"{root}/{name}")) != size:
            was = "is missing" if now is None else f"has {now} bytes"
            raise changed(place, f"{name} {was}, {size} bytes were indexed")
    return index


def _parse(place: str, file: Path) -> Index:
    """Read an index, and check that each file lies within its shard. Raises ValueError, KeyError or TypeError."""
    with safe_open(str(file), "pt") as opened:
        about = json.loads(opened.metadata()["index"])
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, not {FORMAT}")
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    shards = tuple((str(name), int(size)) for name, size in about["shards"])
    members = tuple(about["members"])
    core = {name: tensors[name] for name in ("shard", "offset", "length", "crc", "rank")}
    count = len(core["shard"])
    shapes = {name: (count,) if name in ("shard", "rank") else (count, len(members)) for name in core}
    types = {"offset": torch.int64, "rank": torch.int64}
    for name, tensor in core.items():
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != types.get(name, torch.int32):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} and type {tensor.dtype}")
    if not count or PICTURE not in members or not set(members) <= set(MEMBERS):
        raise ValueError(f"{count} examples of {members}")
    number, sizes = core["shard"].long(), torch.tensor([size for _, size in shards])
    if int(number.min()) < 0 or int(number.max()) >= len(shards) or any(".." in name for name, _ in shards):
        raise ValueError("an example lies in no shard")
    end = (core["offset"] + core["length"]).amax(1)
    if int(core["offset"].min()) < 0 or int(core["length"].min()) < 0 or bool((end > sizes[number]).any()):
        raise ValueError("a file reaches over the end of its shard")
    columns = {}
    for name, one in about["columns"].items():
        rows, names = tensors.get(f"column.{name}"), tuple(map(str, one["names"]))
        if rows is not None and (tuple(rows.shape) != (count,) or rows.is_floating_point() != one["numeric"]):
            raise ValueError(f"column {name!r} has shape {tuple(rows.shape)} and type {rows.dtype}")
        if rows is not None and not one["numeric"] and not 0 <= int(rows.min()) <= int(rows.max()) < len(names):
            raise ValueError(f"a class of column {name!r} has no name")
        columns[name] = Column(bool(one["numeric"]), names, int(one["length"]), rows)
    sha = sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha.update(chunk)
    sizes_of = tuple((int(high), int(wide)) for high, wide in about["sizes"])
    return Index(place, shards, members, sizes_of, columns, **core, digest=sha.hexdigest(), plan=str(about["plan"]))


def unfit(place: str, problem: str, fix: str) -> DataError:
    """Build the error DK316 for tar shards, or files to pack into them, that are not valid examples.

    Args:
        place: the shard or the folder.
        problem: the fault.
        fix: the fix in the message.

    Returns:
        The error, for the caller to raise.
    """
    return DataError(f"{place}: {problem}", code="DK316", fix=fix)


def build_index(place: str, report: Report = no_report, plan: str = "") -> int:
    """Read all tar shards of a folder and write their index beside them.

    Args:
        place: the folder or its URL.
        report: receives the bytes that are read.
        plan: a hash of the files that were packed, kept in the index.

    Returns:
        The number of examples.

    Raises:
        DataError: DK301, there are no shards; DK316, they do not hold examples; DK309, a picture cannot be used.
    """
    system, root = open_place(place)
    shards = list_shards(place)
    table = _Table()
    done, total = 0, sum(size for _, size in shards)
    for number, (name, size) in enumerate(shards):
        with system.open(f"{root}/{name}", "rb") as stream:
            for key, files in _examples(f"{place}/{name}", stream):
                table.add(f"{place}/{name}", number, key, files)
                report(done + files[PICTURE][0], total)
        done += size
        report(done, total)
    content = table.content(place, shards, plan)
    if isinstance(system, LocalFileSystem):
        write_atomic(Path(root) / INDEX, content)
    else:
        system.pipe_file(f"{root}/{INDEX}", content)
    return len(table.shard)


def list_shards(place: str) -> list[tuple[str, int]]:
    """Return name and size of each tar file below a folder, sorted. Raises DataError DK301 if there are none."""
    system, root = open_place(place)
    found = system.find(root, detail=True) if system.exists(root) else {}
    names = {name.removeprefix(f"{root}/"): int(info["size"]) for name, info in found.items()}
    shards = sorted((name, size) for name, size in names.items() if name.endswith(".tar") and not _hidden(name))
    if not shards:
        packed = [name for name in names if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"))]
        notes = [f"{packed[0]} is compressed, so that its examples have no place: unpack it first"] if packed else []
        fix = f"pack a folder of pictures: diffkit shards FOLDER {place}"
        raise DataError(f"no .tar file below {place}", code="DK301", fix=fix, notes=notes)
    return shards


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or absent after a crash."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _hidden(name: str) -> bool:
    return any(piece.startswith(".") for piece in PurePosixPath(name).parts)


Files = dict[str, tuple[int, bytes]]
"""The files of an example: offset and content."""


def _examples(source: str, stream: Any) -> Iterator[tuple[str, Files]]:
    """Yield the name and the known files of each example of a shard, in order."""
    seen = set[str]()
    key, files = "", Files()
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps every header
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not member.isreg() or not stem:
                    continue
                own = f"{folder}/{stem}" if folder else stem
                kind = PICTURE if f".{suffix.lower()}" in SUFFIXES else suffix.lower()
                if kind not in MEMBERS:
                    continue
                if own != key:
                    if files:
                        yield key, files
                    if own in seen:
                        raise unfit(
                            source, f"the files of example {own!r} are not neighbours", "sort the files by name"
                        )
                    seen.add(own)
                    key, files = own, {}
                if kind in files:
                    raise unfit(source, f"example {own!r} has two files of kind {kind}", "keep only one of them")
                if member.size > MAX_FILE_BYTES:
                    problem = f"{member.name} has {member.size} bytes"
                    raise unfit(source, problem, f"pack files of at most {MAX_FILE_BYTES} bytes")
                read = archive.extractfile(member)
                assert read is not None
                files[kind] = member.offset_data, read.read()
    except (tarfile.TarError, EOFError) as error:
        raise unfit(source, f"it is not a whole tar file: {error}", "write the shard again") from error
    if files:
        yield key, files


class _Table:
    """The index as it grows, one example after the other."""

    def __init__(self) -> None:
        self.members: tuple[str, ...] = ()
        self.shard, self.length, self.crc = array("i"), array("i"), array("i")
        self.offset, self.rank = array("q"), array("q")
        self.sizes: dict[tuple[int, int], str] = {}
        self.fields: dict[str, _Field] = {}

    def add(self, source: str, shard: int, key: str, files: Files) -> None:
        """Append one example."""
        members = tuple(member for member in MEMBERS if member in files)
        self.members = self.members or members
        if members != self.members or PICTURE not in members:
            listed = " and ".join(self.members if PICTURE in self.members else MEMBERS[:1])
            problem = f"example {key!r} has {' and '.join(members)}, not {listed}"
            raise unfit(source, problem, "give every example the same kinds of files")
        try:
            with without_warnings():
                size = picture_size(BytesIO(files[PICTURE][1]))
        except PictureError as error:
            message = f"{source}: the picture of example {key!r} cannot be used: {error}"
            raise DataError(message, code="DK309", fix="remove the example, or repair it") from error
        if len(self.sizes) < MAX_SIZES:
            self.sizes.setdefault(size, key)
        self.shard.append(shard)
        for member in members:
            offset, content = files[member]
            crc = zlib.crc32(content)
            self.offset.append(offset)
            self.length.append(len(content))
            self.crc.append(crc - (1 << 32) if crc >> 31 else crc)
        hashed = int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
        self.rank.append(hashed - (1 << 63))  # ordered as the hash
        for name, value in self._values(source, key, files).items():
            field = self.fields.setdefault(name, _Field())
            field.add(value, len(self.shard))

    @staticmethod
    def _values(source: str, key: str, files: Files) -> Mapping[str, object]:
        """Return the numbers and texts of an example by the name of their column."""
        values: dict[str, object] = {}
        for kind in (CAPTION, CLASS):
            if kind in files:
                values[kind] = decoded(files[kind][1], f"{source}: {kind} of example {key!r}")
        if CLASS in values and str(values[CLASS]).removeprefix("-").isdecimal():
            values[CLASS] = int(str(values[CLASS]))
        if FIELDS in files:
            own = parsed(files[FIELDS][1], f"{source}: json of example {key!r}")
            values |= {f"{FIELDS}.{name}": value for name, value in own.items()}
        return values

    def content(self, place: str, shards: Sequence[tuple[str, int]], plan: str) -> bytes:
        """Return the index as the content of a safetensors file."""
        count = len(self.shard)
        if not count:
            fix = "give each example a picture, such as 0001.png"
            raise unfit(place, "the shards hold no example", fix)
        tensors = {
            "shard": torch.frombuffer(self.shard, dtype=torch.int32),
            "offset": torch.frombuffer(self.offset, dtype=torch.int64).view(count, -1),
            "length": torch.frombuffer(self.length, dtype=torch.int32).view(count, -1),
            "crc": torch.frombuffer(self.crc, dtype=torch.int32).view(count, -1),
            "rank": torch.frombuffer(self.rank, dtype=torch.int64),
        }
        columns = {}
        for name, field in self.fields.items():
            if (column := field.column(count)) is not None:
                columns[name] = {"numeric": column.numeric, "names": column.names, "length": column.length}
                if column.rows is not None:
                    tensors[f"column.{name}"] = column.rows
        about = {
            "format": FORMAT,
            "shards": shards,
            "members": self.members,
            "sizes": list(self.sizes),
            "columns": columns,
            "plan": plan,
        }
        return save(tensors, metadata={"index": json.dumps(about)})


class _Field:
    """The values of one column as it grows: numbers, or texts by number."""

    def __init__(self) -> None:
        self.numbers = array("d")
        self.names: dict[str, int] = {}
        self.length = 0
        self.seen = 0
        self.numeric: bool | None = None

    def add(self, value: object, count: int) -> None:
        """Add the value of example `count` - 1; a field that an example lacks, or of mixed type, is given up."""
        if isinstance(value, bool):
            value = str(value).lower()
        numeric = isinstance(value, int | float)
        if self.seen != count - 1 or not isinstance(value, int | float | str) or self.numeric not in (None, numeric):
            self.seen = -1
            return
        self.seen, self.numeric = count, numeric
        if isinstance(value, str):
            self.length = max(self.length, len(value.encode("utf-8", "replace")))
            if len(self.names) <= MAX_NAMES:
                self.numbers.append(self.names.setdefault(value, len(self.names)))
        else:
            self.numbers.append(float(value))

    def column(self, count: int) -> Column | None:
        """Return the column, or None if it is not one value of one type for each of `count` examples."""
        if self.seen != count:
            return None
        if self.numeric:
            return Column(True, (), 0, torch.frombuffer(self.numbers, dtype=torch.float64))
        if len(self.names) > MAX_NAMES:
            return Column(False, (), self.length, None)
        order = sorted(self.names)
        place, first = torch.empty(len(order), dtype=torch.int32), torch.frombuffer(self.numbers, dtype=torch.float64)
        place[torch.tensor([self.names[name] for name in order])] = torch.arange(len(order), dtype=torch.int32)
        return Column(False, tuple(order), self.length, place[first.long()])


def decoded(content: bytes, source: str) -> str:
    """Return the text of a file, without spaces around it. Raises DataError DK316 if it is not UTF-8."""
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise unfit(source, f"it is not UTF-8: {error}", "save it as UTF-8") from error
    if "\0" in text:
        raise unfit(source, "it contains a null character", "remove the character")
    return text


def parsed(content: bytes, source: str) -> dict[str, object]:
    """Return the object of a JSON file. Raises DataError DK316 for anything else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise unfit(source, f"it is not JSON: {error}", "write one JSON object") from error
    if not isinstance(found, dict):
        raise unfit(source, "it is not a JSON object", 'write {"name": value, ...}')
    return found
