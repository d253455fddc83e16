"""Errors that a user can cause: each is a `DiffkitError` with the place, the cause, the allowed values and the fix.

Every error has a code (DKnnn, one page each under docs/errors/) and an exit status of the command line. This module
does not import torch, so that listing commands stay fast.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def plain(text: str, keep: str = "\n\t") -> str:
    """Return `text` with each control character, direction mark and half of a surrogate pair as an escape: `\\x1b`.

    Every text that diffkit prints passes this function, so a name in a file cannot control the terminal.
    """
    return re.sub(r"[^ -~]", lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    hidden = unicodedata.category(character) in UNPRINTABLE
    return ascii(character)[1:-1] if hidden else character


@dataclass(frozen=True)
class Mark:
    """A place in a file of the user: 1-based line and column, the path of the value, and the line itself."""

    file: str
    line: int
    column: int = 1
    path: str = ""
    text: str = ""
    width: int = 1

    def render(self, hint: str | None = None) -> str:
        """Format the place, the line, and a caret under the value, followed by `hint`."""
        gutter = f"{self.line:>3}"
        lines = [f"  --> {self.file}:{self.line}:{self.column}   {self.path}".rstrip()]
        if self.text:
            caret = " " * (self.column - 1) + "^" * max(1, self.width)
            lines += [f"{gutter} | {self.text}", f"{' ' * len(gutter)} | {caret} {hint or ''}".rstrip()]
        elif hint:
            lines.append(f"      {hint}")
        return "\n".join(lines)


class DiffkitError(Exception):
    """Base of every error that a user can cause; `render()` is what the command line prints.

    Args:
        message: The fault, in one sentence.
        code: The code DKnnn; default that of the class.
        where: The place in a file of the user.
        hint: A guess at what was meant.
        choices: The allowed values.
        fix: The next step for the user.
        notes: Further explanations, one line each.
    """

    code = "DK001"
    exit_code = 1
    listing = "allowed"  # the name of `choices` in the message

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        where: Mark | None = None,
        hint: str | None = None,
        choices: str | Sequence[str] = (),
        fix: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.where = where
        self.hint = hint
        self.choices = choices
        self.fix = fix
        self.notes = tuple(notes)
        for note in self.notes:
            self.add_note(plain(f"note: {note}"))  # Python prints it below the message
        self.reported = False  # whether another process of the run reports this error, so that it is not printed twice

    def render(self) -> str:
        """Format the whole message."""
        parts = [f"error[{self.code}] {self.message}"]
        if self.where is not None:
            parts.append(self.where.render(self.hint))
        elif self.hint:
            parts.append(f"  {self.hint}")
        if self.choices:
            allowed = self.choices if isinstance(self.choices, str) else ", ".join(self.choices)
            parts.append(f"  {self.listing}: {allowed}")
        if self.fix:
            parts.append(f"  fix: {self.fix}")
        parts += [f"  note: {note}" for note in self.notes]
        return plain("\n".join(parts))

    def __str__(self) -> str:  # printed by Python and by other programs, which do not escape it
        hint = "" if self.hint is None else f"; {self.hint}"
        return plain(f"{self.message}{hint}" if self.fix is None else f"{self.message}{hint}; fix: {self.fix}")


class UsageError(DiffkitError):
    """Raised if the command line or a function is called with invalid arguments."""

    code, exit_code = "DK010", 2


class ArgumentError(UsageError, TypeError):
    """Raised if a function of the library is called with an argument of the wrong type."""

    @classmethod
    def of(cls, argument: str, expected: str, got: object, fix: str) -> ArgumentError:
        """Describe one wrong argument.

        Args:
            argument: The call and the argument, such as "sample(): argument 2 (`sampler`)".
            expected: The expected type or value, with an article, such as "a Sampler".
            got: The value that was passed.
            fix: The value to pass instead.

        Returns:
            The error, to be raised by the caller.
        """
        return cls(f"{argument} must be {expected}, got {type(got).__name__}", fix=fix)


class RecipeError(DiffkitError):
    """Raised if a recipe is invalid. `errors` holds all faults, each with its own place."""

    code, exit_code = "DK100", 3

    def __init__(self, message: str, *, errors: Sequence[DiffkitError] = (), **kwargs: object) -> None:
        super().__init__(message, **kwargs)  # type: ignore[arg-type]
        self.errors = tuple(errors)

    def render(self) -> str:
        return "\n\n".join(error.render() for error in self.errors) if self.errors else super().render()


class PluginError(DiffkitError):
    """Raised if a plugin is missing, broken, or made for another version of the interface."""

    code, exit_code = "DK200", 4


class DataError(DiffkitError):
    """Raised if a data set cannot be read, or contains invalid values."""

    code, exit_code = "DK300", 5


class ResourceError(DiffkitError):
    """Raised if the disk, the memory or the device is too small."""

    code, exit_code = "DK400", 6


class LevelError(DiffkitError, ValueError):
    """Raised if a quantity is undefined at a noise level."""

    code, exit_code = "DK500", 3


class DivergedError(DiffkitError):
    """Raised if the loss or the gradient is not finite."""

    code, exit_code = "DK510", 7


class CheckpointError(DiffkitError):
    """Raised if a checkpoint cannot be loaded."""

    code, exit_code = "DK600", 8


class LockedError(DiffkitError):
    """Raised if another process writes to the run directory."""

    code, exit_code = "DK610", 9


class PeerError(DiffkitError):
    """Raised if another process of the run ended first or no longer answers. Its exit code is that of the other one,
    if it is known.
    """

    code, exit_code = "DK630", 11


class ViolationError(DiffkitError):
    """Raised if `diffkit check` finds a component that breaks a law."""

    code, exit_code = "DK700", 10


class StoppedError(DiffkitError):
    """Raised after a signal stopped the program; a checkpoint is saved, and the same command resumes."""

    code, exit_code = "DK620", 75

    def render(self) -> str:
        """Format the message without a code: a deliberate stop is not an error."""
        return self.message if self.fix is None else f"{self.message}; {self.fix}"


EXHAUSTED = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, or choose another place"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files: ulimit -n 4096"),
    errno.EROFS: "choose a place that can be written",
    errno.EIO: "check the disk, or choose another place",
    errno.ENOMEM: "free some memory: close other programs",
}
"""The fix for each error of the operating system that states that the machine lacks a resource."""
UNUSABLE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EINVAL, errno.EEXIST, errno.ENOTEMPTY, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EBUSY, errno.EXDEV),
}
"""Errors of the operating system that state that a path cannot be used."""


EXHAUSTED_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory"),
    *("unable to allocate", "storage size calculation overflowed"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, NumPy or torch states that memory ran out."""
    text = str(error).lower()
    stated = isinstance(error, RuntimeError) and any(message in text for message in EXHAUSTED_MEMORY)
    return stated or isinstance(error, MemoryError)


def system_error(error: OSError) -> DiffkitError | None:
    """Convert an error of the operating system to the error of the user that it stands for; None for a bug."""
    reason, place = error.strerror, "" if error.filename is None else f" {os.fsdecode(error.filename)}"
    if error.errno in EXHAUSTED:
        return ResourceError(f"cannot use{place or ' the disk'}: {reason}", code="DK403", fix=EXHAUSTED[error.errno])
    if error.errno not in UNUSABLE:
        return None
    with contextlib.suppress(FileNotFoundError):
        os.getcwd()
        return UsageError(f"cannot use{place}: {reason}", code="DK025", fix="check the path and its permissions")
    return UsageError("the working directory does not exist any more", code="DK025", fix="change to another: cd")
