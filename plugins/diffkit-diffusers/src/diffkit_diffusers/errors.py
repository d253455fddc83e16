"""Errors about what one side has and the other cannot express."""

from __future__ import annotations

from collections.abc import Sequence

from diffkit import CheckpointError, UsageError


def inexpressible(message: str, *, fix: str | None = None, notes: Sequence[str] = ()) -> UsageError:
    """A model that only one of the two sides can build."""
    return UsageError(message, code="DK081", fix=fix, notes=notes)


def not_a_model(message: str, *, fix: str | None = None, notes: Sequence[str] = ()) -> UsageError:
    """A folder or file that does not hold what it should."""
    return UsageError(message, code="DK080", fix=fix, notes=notes)


def misnamed(missing: Sequence[str], extra: Sequence[str]) -> CheckpointError:
    """Weights under other names than the architecture says."""
    notes = [*(f"missing: {name}" for name in missing[:8]), *(f"no place for: {name[:120]}" for name in extra[:8])]
    return CheckpointError(
        "these are the weights of another network",
        code="DK603",
        fix="give the config that they were trained with",
        notes=notes,
    )
