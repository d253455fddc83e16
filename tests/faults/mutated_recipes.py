"""Mutated recipes and overrides, as functions of a number, and a program that loads a range of them.

`python mutated_recipes.py FIRST LAST` prints the figures and each case that broke a limit, as JSON, per 100 cases.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from diffkit import load_recipe
from diffkit.errors import DiffkitError
from diffkit.host import registry
from diffkit.recipe.effective import effective_yaml, recipe_hash
from diffkit.recipe.yaml import parse

MAX_SECONDS = 2.0
MAX_BYTES = 1 << 30

NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 64, 999, 1000, 10**5, 10**6, 10**9, 2**31, 2**40, 2**40 + 1, 2**53, 2**63 - 1, -(2**63)),
    *(0.0, -0.0, 0.5, 1.0, -1.5, 1e-300, 5e-324, 1e300, 1.7e308, 0.9999999999999999, 1e-9, 3.5),
]
WORDS = [
    *(
        "",
        " ",
        "name",
        "auto",
        "null",
        "none",
        "os.system",
        "../../etc/passwd",
        "/dev/zero",
        "/dev/null",
        "/proc",
        "..",
    ),
    *("\x1b[31m", "a\nb", "\u202e", "[red]x[/red]", "[/x]", "${HOME}", "~nosuchuser", "x" * 300, "x" * 20_000, "\x7f"),
    *(
        "é" * 200,
        "\U0001f600",
        "9" * 5000,
        "1e999",
        "0x" + "f" * 99,
        ".inf",
        "ema",
        "raw",
        "width:0.1",
        "1_000",
        "1:30",
    ),
    *("nan", "%s", "{0}", "\\", "'", '"', "#", "a: b", "- a", "!!int 1", "&a", "*a", "NaN", "-", "?", "@", "`", "yes"),
]


def some_value(random: random.Random, depth: int = 0) -> Any:
    """A value of any type, up to three levels deep."""
    choice = random.random()
    if choice < 0.35:
        return random.choice(NUMBERS)
    if choice < 0.6:
        return random.choice(WORDS)
    if choice < 0.68:
        return random.choice([True, False, None])
    if depth == 3:
        return None
    inner = [some_value(random, depth + 1) for _ in range(random.choice([0, 1, 2, 3, 5]))]
    if choice < 0.84:
        return inner * (random.choice([1, 1, 1, 40, 400]) if depth == 0 else 1)
    keys = [*all_names(), "name", *WORDS]
    return {random.choice(keys): item for item in inner}


def all_names() -> list[str]:
    """The names of all components."""
    return sorted({one.name for one in registry().entries()})


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    steps = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    return [(tree, key) for key, _ in steps] + [place for _, item in steps for place in places(item)]


def change(tree: dict[str, Any], others: list[dict[str, Any]], random: random.Random) -> None:
    """Make one structural mutation."""
    all_places = places(tree)
    if not all_places:
        return
    inside, key = random.choice(all_places)
    kind = random.randrange(9)
    if kind < 3:
        inside[key] = some_value(random)
    elif kind == 3:
        del inside[key]
    elif kind == 4 and isinstance(inside, dict):
        letters = list(key)
        letters.insert(random.randrange(len(letters) + 1), random.choice("aeiou_-. \x1b"))
        inside["".join(letters)] = inside.pop(key)
    elif kind == 5:
        there, other = random.choice(all_places)
        there[other] = copy.deepcopy(inside[key])
    elif kind == 6:
        inside[key] = random.choice(all_names())
    elif kind == 7:
        there, other = random.choice(places(random.choice(others)))
        inside[key] = copy.deepcopy(there[other])
    elif isinstance(inside, dict):
        inside[random.choice([*all_names(), *WORDS[:4], "seed", "steps", "count", "labels", "batch_size"])] = (
            some_value(random)
        )


def change_text(text: str, random: random.Random) -> str:
    """Make one mutation of the text."""
    lines = text.splitlines()
    at, letter = random.randrange(len(text)), random.choice("\t :[]{}-#&*!|>'\"%@`,?\0\x1b\x85\u2028é0")
    line = random.randrange(len(lines))
    match random.randrange(6):
        case 0:
            return text[:at] + letter + text[at:]
        case 1:
            return text[:at] + text[at + random.randrange(1, 30) :]
        case 2:
            return text[:at]
        case 3:
            lines[line] = random.choice([" ", "  ", "\t", "- "]) + lines[line]
        case 4:
            lines.insert(line, random.choice(lines))
        case 5:
            lines.insert(line, random.choice(["---", "...", "? a", "<<: {a: 1}", "a: &a b", "%YAML 1.2", "- a", "}"]))
    return "\n".join(lines) + "\n"


def some_override(tree: dict[str, Any], random: random.Random) -> str:
    """One text for `--set`."""
    paths, todo = [], [("", tree)]
    while todo:
        path, item = todo.pop()
        if path:
            paths.append(path)
        steps = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        todo += [(f"{path}.{key}" if path else str(key), below) for key, below in steps]
    path = random.choice(paths)
    match random.randrange(10):
        case 0:
            path += "." + random.choice([*all_names(), "0", "-1", "99999999999999999999", "", "\x1b", "name"])
        case 1:
            path = ".".join(random.choice(["a", "0", "name"]) for _ in range(random.choice([2, 31, 32, 33, 3000])))
        case 2:
            path = random.choice(WORDS)
    value = some_value(random)
    written = value if isinstance(value, str) else json.dumps(value)
    return random.choice([f"{path}={written}", f"{path}={written}", f"{path}={written}", path + written, f"{path} = "])


def mutated(number: int, recipes: dict[str, str], trees: dict[str, Any]) -> tuple[str, list[str]]:
    """Case `number`: the text of a recipe, and overrides. `trees` are the values of `recipes`."""
    dice = random.Random(number)
    name = dice.choice(sorted(trees))
    tree: Any = copy.deepcopy(trees[name])
    if number % 5 == 0:
        text = recipes[name]
        for _ in range(dice.randrange(1, 4)):
            text = change_text(text, dice) if text.strip() else text
        return text + "\n", []
    if number % 5 == 1:
        return recipes[name], [some_override(tree, dice) for _ in range(dice.randrange(1, 4))]
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        change(tree, list(trees.values()), dice)
    return json.dumps(tree, indent=1, ensure_ascii=dice.random() < 0.5) + "\n", []


class TooLongError(BaseException):
    """Raised by the clock in a case that takes too long."""


def outcome_of(text: str, overrides: list[str]) -> str:
    """Load a recipe as `validate` and `config` do. Any exception other than `DiffkitError` passes."""
    try:
        recipe = load_recipe(text, overrides)
    except DiffkitError as error:
        return str(error.exit_code) if error.render() else "silent"
    assert recipe_hash(load_recipe(effective_yaml(recipe))) == recipe_hash(recipe)
    return "valid"


def main(first: int, last: int) -> None:
    """Load the cases from `first` to `last`, and print the figures."""
    recipes = {name: path.read_text(encoding="utf-8") for name, path in registry().recipes().items()}
    trees = {name: parse(text, name).plain() for name, text in recipes.items()}
    load_recipe("digits")
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + 4 * MAX_BYTES,) * 2)

    def clock(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGPROF, clock)
    outcomes, broken, slowest, peak = Counter[str](), [], (0.0, 0), start
    for number in range(first, last):
        text, overrides = mutated(number, recipes, trees)
        faulthandler.dump_traceback_later(300, exit=True)
        for clock_seconds in (10 * MAX_SECONDS, 2 * MAX_SECONDS):  # the first use of a library includes its import
            began = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, clock_seconds)
            try:
                outcome = outcome_of(text, overrides)
            except BaseException:  # noqa: BLE001 - any exception is reported
                signal.setitimer(signal.ITIMER_PROF, 0)
                outcome = "traceback"
                broken.append([number, traceback.format_exc()[-1500:]])
                print(number, traceback.format_exc(), file=sys.stderr, flush=True)
            signal.setitimer(signal.ITIMER_PROF, 0)
            seconds = time.process_time() - began
            if seconds < MAX_SECONDS:
                break
        slowest = max(slowest, (seconds, number))
        if seconds > MAX_SECONDS:
            broken.append([number, f"{seconds:.1f} s"])
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if now - start > MAX_BYTES and now > peak:
            broken.append([number, f"{(now - start) >> 20} MiB"])
        peak = max(peak, now)
        outcomes[outcome] += 1
        figures = {"outcomes": outcomes, "slowest": slowest, "grown_mib": (peak - start) >> 20, "broken": broken}
        if number % 100 == 99 or number == last - 1:
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
