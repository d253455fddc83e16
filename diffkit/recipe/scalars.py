"""YAML 1.2 core scalars: what an unquoted word means.

PyYAML reads YAML 1.1, where 1e-4 is text, `on` is true, 017 is fifteen and 12:30:45 is a number; this does not.
"""

from __future__ import annotations

import math
import re

from .tree import Scalar

LITERALS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
INT = re.compile(r"[-+]?[0-9]+\Z", re.ASCII)
BASED = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z", re.ASCII)
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z", re.ASCII)
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z", re.ASCII)
YAML_1_1 = {"y", "n", "yes", "no", "on", "off"}
"""Words that older readers take for true and false, so that we write them in quotes."""
LARGEST = 2**63 - 1
DIGITS = 64


def resolve(word: str) -> Scalar:
    """The value of an unquoted scalar. Raises ValueError where it is a number that no recipe can hold."""
    if word in LITERALS:
        return LITERALS[word]
    if NOT_FINITE.match(word):
        raise ValueError(f"{word} is not a finite number")
    if INT.match(word) or BASED.match(word):
        if len(word) > DIGITS or abs(number := int(word, 0 if BASED.match(word) else 10)) > LARGEST:
            raise ValueError("a whole number must fit in 64 bits")
        return number
    if FLOAT.match(word):
        if len(word) > 4 * DIGITS or not math.isfinite(real := float(word)):
            raise ValueError("a number must be finite and of sensible length")
        return real
    return word


def is_plain(text: str) -> bool:
    """Whether `text` may be written without quotes and still be read as that text."""
    if not re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./+-]*", text, re.ASCII) or text.lower() in YAML_1_1:
        return False
    try:
        return resolve(text) == text
    except ValueError:
        return False
