"""Print the tests that `make fast` runs: those of what changed against main, then a core subset.

What changed is everything since this branch left main: commits, edits and new files. On main only edits count; without
git, nothing does. The core subset is the algebra and the rules of the repository.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def tests_for(changed: Iterable[str], root: Path) -> list[str]:
    """Return paths of tests, those of the changed files first; a path occurs once.

    Args:
        changed: files that differ from main, relative to the root.
        root: the root of the repository.
    """
    chosen: dict[str, None] = {}
    for name in sorted(changed):
        place = _tests_of(Path(name))
        if place is not None and (root / place).exists():
            chosen[str(place)] = None
    core = [*sorted((root / "tests" / "unit").glob("test_*.py")), root / "tests" / "policy"]
    chosen |= dict.fromkeys(str(path.relative_to(root)) for path in core)
    return [one for one in chosen if not any(str(parent) in chosen for parent in Path(one).parents)]


def _tests_of(path: Path) -> Path | None:
    """Return the test file or folder that belongs to a file, or None."""
    match path.parts:
        case ["tests", *_] if path.name.startswith("test_") and path.suffix == ".py":
            return path
        case ["tests", "unit", folder, _]:
            return Path("tests", "unit", folder)
        case ["diffkit", folder, *_, _]:
            return Path("tests", "unit", folder)
        case ["plugins", folder, *_, _]:
            return Path("plugins", folder, "tests")
    return None


def changed_files(root: Path) -> set[str]:
    """Return the files that differ from where this branch left main, relative to the root; empty without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout

    try:
        new = git("ls-files", "--others", "--exclude-standard")
        try:
            base = git("merge-base", "main", "HEAD").strip()
        except subprocess.CalledProcessError:  # a clone that has no branch main
            base = "HEAD"
        return {*git("diff", "--name-only", base).splitlines(), *new.splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return set()


if __name__ == "__main__":
    print("\n".join(tests_for(changed_files(ROOT), ROOT)))
