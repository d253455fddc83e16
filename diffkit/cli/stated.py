"""Options of `diffkit sample` that state conditions and guidance: `--condition`, `--prompt`, `--guidance`, `--scale`.

Values are read as the condition requires: a text as it is, classes and numbers separated by commas, and files by their
suffix.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DiffkitError, Mark, UsageError

if TYPE_CHECKING:
    from ..data import ConditionSpec

PLACE = re.compile(r"build\('([a-z-]+)', ")
"""The place of errors in components that a command builds."""
TEXT, CFG = "text", "cfg"
"""The condition of `--prompt`, and the guidance of `--scale` and `--negative`."""
MAX_NAME_CHARACTERS = 150
"""Largest length of the part of a file name that describes how samples were drawn."""
PLAIN = re.compile(r"[\w.=+]+( [\w.=+]+)*")
"""A text that differs from every other one in the name of a file, where spaces are dashes."""
ARRAYS, PICTURES, LINES = (".npy",), (".png", ".jpg", ".jpeg", ".webp", ".bmp"), (".txt",)


def stated_conditions(
    texts: Iterable[str], prompt: str | None, specs: Mapping[str, ConditionSpec]
) -> dict[str, Any] | None:
    """Return the conditions that a command line states.

    Args:
        texts: NAME=VALUE or NAME=@FILE each; several of one name are several values.
        prompt: a text, short for text=PROMPT; None if not given.
        specs: the conditions of the model.

    Returns:
        Values by name, as `read_condition` takes them; None if none is stated.

    Raises:
        UsageError: DK017, a text is not NAME=VALUE, or the prompt is stated twice; DK019, there is no such condition,
            or a file cannot be read.
    """
    given: dict[str, Any] = {}
    stated = list(texts)
    if prompt is not None and any(text.startswith(f"{TEXT}=") for text in stated):
        raise _twice("--prompt", f"--condition {TEXT}")
    for text in [*stated, *([] if prompt is None else [f"{TEXT}={prompt}"])]:
        name, sign, value = text.partition("=")
        if not sign:
            raise UsageError(f"{text!r} is not a condition", code="DK017", fix="write NAME=VALUE or NAME=@FILE")
        _require(name, specs)
        read = _file(Path(value[1:]), specs[name]) if value.startswith("@") else _value(value, specs[name])
        given[name] = [*given[name], *read] if name in given else read
    return given or None


def drawn_name(choices: Sequence[str | None], texts: Sequence[str | None], files: Sequence[Path], seed: int) -> str:
    """Return the name of a file of samples, which is another one if they are drawn in another way.

    Args:
        choices: the options that were given, with one spelling each.
        texts: what has characters that a name cannot hold. If it has some, the name ends with a hash.
        files: what the samples depend on; the name ends with a hash of their content.
        seed: the seed.

    Returns:
        The name without suffix.
    """
    stated = [*filter(None, choices), *filter(None, texts), f"seed{seed}"]
    name = re.sub(r"[^\w.=+-]+", "-", "-".join(["drawn", *stated]))
    whole = all(PLAIN.fullmatch(text) for text in texts if text)
    if whole and not files and len(name) <= MAX_NAME_CHARACTERS:
        return name
    found = hashlib.sha256("\0".join(stated).encode())
    for file in files:
        with suppress(OSError):  # an unreadable file is refused by its reader
            found.update(file.read_bytes())
    return f"{name[:MAX_NAME_CHARACTERS]}-{found.hexdigest()[:12]}"


def named_files(conditions: Iterable[str], adapters: Iterable[str]) -> list[Path]:
    """Return the files that conditions NAME=@FILE and adapters FILE[:WEIGHT] name."""
    found = [Path(text.partition("=@")[2]) for text in conditions if "=@" in text]
    return [*found, *(Path(text if Path(text).is_file() else text.rpartition(":")[0]) for text in adapters)]


def _twice(short: str, whole: str) -> UsageError:
    return UsageError(f"{short} and {whole} are both given", code="DK017", fix="leave one of them out")


def _require(name: str, specs: Mapping[str, ConditionSpec]) -> None:
    if name not in specs:
        raise UsageError(f"this run has no condition {name}", code="DK019", choices=sorted(specs) or "none")


def _value(text: str, spec: ConditionSpec) -> Any:
    """Return the values in a text: the text itself, classes, numbers, or one vector."""
    if spec.dtype == "text":
        return [text]
    parts = [part.strip() for part in text.split(",")]
    if spec.dtype == "long":
        return [int(part) if part.isdecimal() else part for part in parts]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        fix = "write numbers with commas between them, or NAME=@FILE"
        raise UsageError(f"{text!r} is not a list of numbers", code="DK019", fix=fix) from None
    return [numbers] if spec.shape else numbers


def _file(path: Path, spec: ConditionSpec) -> Any:
    """Return the values in a file: a line each of text or classes, an array, or a picture."""
    import numpy as np
    from PIL import Image

    suffix = path.suffix.lower()
    try:
        if suffix in LINES and spec.dtype == "text":
            return path.read_text(encoding="utf-8").splitlines()
        if suffix in LINES:
            return [one for line in path.read_text(encoding="utf-8").splitlines() for one in _value(line, spec)]
        if suffix in ARRAYS:
            rows = np.load(path, allow_pickle=False)
            return rows[None] if rows.shape == spec.shape else rows
        if suffix in PICTURES and len(spec.shape) == 3:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("L" if spec.shape[0] == 1 else "RGB"))
            return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)[None].copy()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", code="DK019", fix="check the file") from error
    allowed = "a text file with a value on each line (.txt), an array (.npy), or a picture of a condition (C, H, W)"
    raise UsageError(f"{path} does not fit this condition", code="DK019", choices=allowed)


def stated_size(text: str | None) -> tuple[int, ...] | None:
    """Return HxW as (H, W). Raises UsageError DK017 for another text."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{text!r} is not a size", code="DK017", fix="write HEIGHTxWIDTH, such as 512x768")
    return tuple(int(part) for part in parts)


@contextmanager
def pointing_to(texts: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Return a context in which an error of a component points to the command-line option that names the component.

    Args:
        texts: by kind of component, the options and their values, such as "--sampler ddim,eta=2".
    """
    try:
        yield
    except DiffkitError as error:
        for one in {id(e): e for e in (error, *getattr(error, "errors", ()))}.values():
            kind = PLACE.match(one.where.file) if one.where is not None else None
            stated = texts.get(kind[1], ()) if kind is not None else ()
            if one.where is None or not stated:
                continue
            path = one.where.path
            key = path.rpartition(".")[2]
            text = next((text for text in stated if key in text), stated[0])
            option, column = text.partition(" ")[0], text.find(key) + 1 or text.find(" ") + 2
            one.where = Mark(option, 1, column, path, text, len(key) if key in text else len(text) - column + 1)
            one.fix = one.fix or f"leave {option} out, or change it"
        raise


def stated_guidance(
    texts: Iterable[str], scale: float | None, negative: str | None, specs: Mapping[str, ConditionSpec]
) -> dict[str, Any] | None:
    """Return the changes of guidance that a command line states.

    Args:
        texts: NAME=SCALE or NAME.OPTION=VALUE each; values are read as in a recipe.
        scale: short for cfg=SCALE; None if not given.
        negative: short for cfg.negative=TEXT; None if not given.
        specs: the conditions of the model.

    Returns:
        Options by name of the guidance; None if none is stated.

    Raises:
        UsageError: DK017, a text is neither NAME=SCALE nor NAME.OPTION=VALUE, an option is stated twice, or the scale
            is not finite; DK019, there is no text to be negative.
    """
    from ..recipe.yaml import parse

    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        path, sign, value = text.partition("=")
        name, dot, option = path.partition(".")
        if not sign or not name or (dot and not option):
            fix = "write NAME=SCALE or NAME.OPTION=VALUE, such as cfg=3.0"
            raise UsageError(f"{text!r} is not a guidance", code="DK017", fix=fix)
        plain = parse(value, f"--guidance {text}").plain()
        stated = {TEXT: plain} if option == "negative" and isinstance(plain, str) else plain
        found.setdefault(name, {})[option or "scale"] = stated
    if scale is not None and not math.isfinite(scale):
        raise UsageError(f"--scale is {scale}", code="DK017", fix="pass a finite number, such as --scale 7.5")
    if negative is not None:
        _require(TEXT, specs)
    shorts = {"scale": scale, "negative": None if negative is None else {TEXT: negative}}
    for option, short in shorts.items():
        if short is not None:
            own = found.setdefault(CFG, {})
            if option in own:
                raise _twice(f"--{option}", f"{option} of --guidance {CFG}")
            own[option] = short
    return dict(found) or None
