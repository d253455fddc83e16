"""Errors of conversion between diffkit, diffusers and OpenAI's code."""

from __future__ import annotations

from collections.abc import Sequence

from diffkit import CheckpointError, UsageError

REFUSALS = (ValueError, TypeError, NotImplementedError, ZeroDivisionError, KeyError, IndexError, AttributeError)
"""What constructors of diffusers and transformers raise for a configuration that they cannot build."""


def inexpressible(message: str, *, fix: str | None = None, notes: Sequence[str] = ()) -> UsageError:
    """Build the error for a model that the other side cannot express.

    Args:
        message: the part that cannot be expressed.
        fix: the fix in the message; default none.
        notes: details, one line each; default none.

    Returns:
        A UsageError DK081, for the caller to raise.
    """
    return UsageError(message, code="DK081", fix=fix, notes=notes)


def not_a_model(message: str, *, fix: str | None = None, notes: Sequence[str] = ()) -> UsageError:
    """Build the error for a folder or file that does not hold a usable model.

    Args:
        message: the fault of the folder or file.
        fix: the fix in the message; default none.
        notes: details, one line each; default none.

    Returns:
        A UsageError DK080, for the caller to raise.
    """
    return UsageError(message, code="DK080", fix=fix, notes=notes)


def misnamed(missing: Sequence[str], extra: Sequence[str]) -> CheckpointError:
    """Build the error DK603 for weights whose names do not fit the architecture: those `missing` and those `extra`."""
    notes = [*(f"missing: {name}" for name in missing[:8]), *(f"unexpected: {name[:120]}" for name in extra[:8])]
    return CheckpointError(
        "the weights do not fit this network",
        code="DK603",
        fix="use the config of the training",
        notes=notes,
    )
