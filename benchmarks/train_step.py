"""The whole training step and its update part, beside peers, as ratios measured in one run.

    python benchmarks/train_step.py [--rounds 9] [--threads 2] [--size large ...] [--part step] [--cpu-time]
                                    [--peer edm=CHECKOUT ...] [--before CHECKOUT] [--json OUT]

Peers: diffusers' UNet2DModel in the plain loop of its unconditional example (clip_grad_norm_, AdamW, EMAModel), a lean
loop written by hand around our own network, those of peers.py whose checkout is given, and with --before an earlier
checkout of diffkit, in its own loop. Same architecture and batch.
Each has a process of its own; they take turns, so that a busy machine slows all alike, and a ratio is the median of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path

import torch
from checkouts import in_checkout
from contestants import BUILDERS, SIZES, Size, Switches, network
from peers import PEERS, THIRTY_TWO
from turns import Turns, Work, ratios

BASE = "diffkit fp32"


def work(name: str, size: Size, switches: Switches) -> Work:
    """What a contestant can do; runs in its process."""
    step, update = {**BUILDERS, **PEERS}[name](size, switches)
    return {"step": step, "update": update}


def contestants(size: Size, peers: Mapping[str, Path], before: Path | None = None) -> dict[str, partial[Work]]:
    """All that can take part here."""
    told = {BASE: ("diffkit", Switches()), "by hand": ("by hand", Switches())}
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
        told["diffkit bf16"] = ("diffkit", Switches(precision="bf16"))
    told["diffusers"] = ("diffusers", Switches())
    for name, checkout in peers.items():
        if name not in THIRTY_TWO or size.channels % 32 == 0:
            told[name] = (name, Switches(checkout=checkout))
    found = {who: partial(work, name, size, switches) for who, (name, switches) in told.items()}
    if before is not None:
        found["before"] = partial(in_checkout, before, "train_work", "ours", *astuple(size))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", action="append", choices=sorted(SIZES))
    parser.add_argument("--part", choices=("step", "update"))
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time, for a busy machine, with one thread")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=CHECKOUT", help=", ".join(PEERS))
    parser.add_argument("--before", type=Path, help="root of an earlier checkout of diffkit")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    peers = {name: Path(checkout).resolve() for name, _, checkout in (one.partition("=") for one in given.peer)}
    for name, checkout in peers.items():
        if name not in PEERS or not checkout.is_dir():
            parser.error(f"--peer {name}={checkout}: needs one of {', '.join(PEERS)}, and a folder")
    rows = []
    for name in given.size or SIZES:
        size = SIZES[name]
        count = sum(p.numel() for p in network(size).parameters())
        with Turns(contestants(size, peers, given.before), given.threads, cpu_time=given.cpu_time) as t:
            for part in ("step", "update") if given.part is None else (given.part,):
                times = t.measure(part, size.inner, given.rounds)
                report(name, count, part, times)
                rows += [{"size": name, "part": part, "who": who, "seconds": spent} for who, spent in times.items()]
    if given.json:
        given.json.write_text(json.dumps({"threads": given.threads, "torch": torch.__version__, "rows": rows}))


def report(name: str, count: int, part: str, times: Mapping[str, Sequence[float]]) -> None:
    """One table."""
    print(f"{name} ({count / 1e6:.1f} M parameters), {part}")
    against = ratios(times, BASE)
    for who, spent in times.items():
        told = f"{statistics.median(spent) * 1e3:9.2f} ms"
        print(f"  {who:18s} {told}   diffkit fp32 is {against[who]:5.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
