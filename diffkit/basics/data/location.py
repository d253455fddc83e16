"""Where data sets lie: paths are relative to the working directory, and `~` is the home directory."""

from __future__ import annotations

import os
from pathlib import Path

from diffkit.errors import DataError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def locate(path: str) -> Path:
    """`path` with `~` expanded."""
    return Path(path).expanduser()


def known_folder(path: str | None, name: str) -> Path:
    """The folder of the set `name`: `path`, else $DIFFKIT_DATA/name, else data/name."""
    if path is not None:
        return locate(path)
    return locate(os.environ.get("DIFFKIT_DATA") or "data") / name


def require(path: Path, what: str, fix: str, *, folder: bool | None = None) -> Path:
    """`path`, which must exist (as a folder, or as a file, where `folder` says so). Raises DataError DK301."""
    wanted = {None: path.exists, True: path.is_dir, False: path.is_file}[folder]
    if wanted():
        return path
    notes = [f"{path} exists, but is not a {'folder' if folder else 'file'}"] if path.exists() else []
    notes += [
        f"{packed} lies beside it: unpack it first"
        for packed in (path.with_name(path.name + suffix) for suffix in ARCHIVES)
        if packed.exists()
    ]
    if not path.is_absolute():
        notes.append(f"relative paths start at the working directory, {Path.cwd()}")
    raise DataError(f"{what} not found: {path}", code="DK301", fix=fix, notes=notes)


def archive_note(folder: Path) -> tuple[str, ...]:
    """A note on packed archives in `folder`, for messages about files that are missing there."""
    packed = sorted(p.name for p in folder.iterdir() if p.name.endswith(ARCHIVES))
    return (f"{folder} holds {', '.join(packed[:5])}: unpack it first",) if packed else ()
