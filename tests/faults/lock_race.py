"""Eight processes begin the same run at the same moment, many times over; exactly one may win.

Usage: python lock_race.py DIRECTORY ROUNDS   prints, for each round, how many won, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from diffkit.errors import LockedError
from diffkit.storage.run_directory import begin

RACERS = 8


def race(path: Path, resume: Any, gate: int, result: int, done: int) -> None:
    """One racer: wait for the gate, try, say what came of it, and hold on until everybody has tried."""
    os.read(gate, 1)
    try:
        opened = begin(path, "name: x\n", "name: x\n", {}, resume, parse=str)
        os.write(result, b"w")
        os.read(done, 1)
        opened.lock.release()
    except LockedError as error:
        os.write(result, b"l" if error.exit_code == 9 and "process" in error.message else b"?")
    except BaseException:
        os.write(result, b"?")  # first, because the others wait for it
        traceback.print_exc()
        raise


def one_round(path: Path, resume: str) -> str:
    gate, result, done = os.pipe(), os.pipe(), os.pipe()
    children = []
    for _ in range(RACERS):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                race(path, resume, gate[0], result[1], done[0])
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    os.write(gate[1], b"g" * RACERS)
    outcome = b""
    os.close(result[1])
    while len(outcome) < RACERS and (said := os.read(result[0], RACERS)):
        outcome += said
    os.write(done[1], b"d" * RACERS)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    for handle in (*gate, result[0], *done):
        os.close(handle)
    return outcome.decode() + "!" * failed


def main() -> None:
    root, rounds = Path(sys.argv[1]), int(sys.argv[2])
    outcomes = []
    for number in range(rounds):
        outcomes.append(one_round(root / f"fresh{number}", "auto"))
        outcomes.append(one_round(root / f"fresh{number}", "auto"))
        outcomes.append(one_round(root / f"fresh{number}", "never"))
    print(json.dumps({"outcomes": outcomes, "directories": sorted(path.name for path in root.iterdir())}))


if __name__ == "__main__":
    main()
