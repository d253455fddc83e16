"""The word list of the project: plain technical English in docstrings, comments, messages, summaries and pages.

`python tests/policy/language.py [PATH ...]` lists every place that breaks it.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

WORDS: dict[str, str] = {
    r"told|tells?|telling": "pass, report, return, print, show",
    r"hears?|heard|deaf": "receive, read, listen",
    r"says?|said|saying": "state, report, return, write, mean",
    r"asks?|asked|asking": "request, call, require, query, look up",
    r"knows?|knew": "has, contains, supports, stores",
    r"speaks?|spoke|spoken": "use, return",
    r"anew": "again",
    r"alike": "both, in the same way",
    r"so (many|few|much)": "a number, or name it",
    r"of which": "name the thing",
    r"there (is|are) none of": "name the thing that is missing",
    r"whence|whoever|whosoever|nobody|thereof|therein|hence|thus": "from where, the caller, no one, so",
    r"(?<!there )(is|are) no (?!longer\b|more\b|less\b)[a-z]+": "is not a ...",
    r"(goes?|going|went|gone) on": "continue",
    r"(holds?|held) against": "check against",
    r"bears? the name|sees to it|see to it": "has the name, ensure",
    r"where (it|there|they|nothing|neither|none|nobody|that is|this is|one is|such)": "if",
    r"raises?:? [^.\n]{0,80}? where": "if",
    r"(none|nan|inf|zero|nothing|only|even|needed|refused|error|true|false|whole|empty) where": "if",
    r"what it (was|is) (told|asked|given)": "name the thing",
    r"of the house": "of the project",
    r"announces?|announced|announcing": "declare",
    r"likewise|stands? alone|else not": "name the thing",
    r"what diffuses|what the network fits|other people's": "name the thing",
    r"lest|albeit|amid|withal|save for|nought": "plain words",
}
PATTERN = re.compile(r"\b(?:" + "|".join(f"(?:{word})" for word in WORDS) + r")\b", re.IGNORECASE)
CODE = re.compile(r"``[^`]*``|`[^`]*`|\$[^$\n]+\$|https?://\S+")
QUOTED = re.compile(r"\"[^\"\n]*\"")


def breaches(path: Path) -> list[tuple[int, str]]:
    """(line, the words around it) for each place of a Python or Markdown file that breaks the list."""
    texts = python_texts(path) if path.suffix == ".py" else markdown_texts(path)
    found = []
    for line, text in texts:
        plain = CODE.sub(lambda match: " " * len(match[0]), text)
        for match in PATTERN.finditer(plain):
            start = plain.rfind("\n", 0, match.start()) + 1
            end = plain.find("\n", match.end())
            found.append((line + plain.count("\n", 0, match.start()), text[start : end if end >= 0 else None].strip()))
    return found


def python_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings, comments, and every other text that reads like a sentence, each with its first line."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"[a-z] [a-z]", node.value):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def markdown_texts(path: Path) -> Iterator[tuple[int, str]]:
    """The paragraphs outside of code blocks, each with its first line."""
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def files(*roots: Path) -> list[Path]:
    """Every Python and Markdown file below `roots` that a reader of the project meets."""
    found = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*"))]
    return sorted(
        path for path in found if path.suffix in (".py", ".md") and not {"site", ".venv", "build"} & {*path.parts}
    )


if __name__ == "__main__":
    count = 0
    for path in files(*map(Path, sys.argv[1:] or [ROOT / "diffkit"])):
        for line, text in breaches(path):
            count += 1
            print(f"{path}:{line}: {text}")
    print(f"{count} places")
