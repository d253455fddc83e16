"""Run by the test of several processes: train the toy task as one rank and write down what came out.

usage: ranks.py RANK SIZE PORT OUT
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import toys
from safetensors.torch import save_file

from diffkit.basics.lr_schedules import Constant
from diffkit.basics.optimizers import Adam
from diffkit.basics.strategies import Auto
from diffkit.runtime.distributed import Ranks, join_ranks, leave_ranks
from diffkit.train.config import EmaConfig, TrainConfig
from diffkit.train.data_loading import InMemoryBatches
from diffkit.train.trainer import Trainer

CONFIG = TrainConfig(steps=8, batch_size=11, accumulate=2, log_every=4, ema=(EmaConfig(decay=0.9),))
SEEN: list[list[int]] = []


class Spied(InMemoryBatches):
    """Notes which examples were asked for."""

    def rows(self, step: int, rows: range) -> Any:
        SEEN.append([step, *self.order.rows(step, rows.start, rows.stop).tolist()])
        return super().rows(step, rows)


class Bad(toys.Simple):
    """A loss that is not a number, at step 4 and on the last rank only."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        object.__setattr__(self, "rank", rank)

    def __call__(self, model: Any, x0: Any, noise: Any, **rest: Any) -> Any:
        loss = super().__call__(model, x0, noise, **rest)
        bad = noise.step == 4 and self.rank == 1  # type: ignore[attr-defined]
        return replace(loss, mean=loss.mean * float("nan")) if bad else loss


def train(ranks: Ranks, scenario: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What came out of training as one rank, and the tensors; alone it is the reference."""
    SEEN.clear()
    task = toys.task(dropout=0.0)
    if scenario == "diverge":
        task = toys.task(toys.Whole(), Bad(ranks.rank), dropout=0.0)
    trainer = Trainer(task, CONFIG, Adam(), Constant(warmup=3), Auto(), ranks=ranks)
    engine = trainer.engine
    engine.batch_source = lambda first: Spied(engine._split, engine._order)  # type: ignore[method-assign]
    recorder = toys.Recorder()

    def stop() -> bool:
        return scenario == "stop" and ranks.rank == 1 and trainer.step == 3

    result: dict[str, Any] = {"error": None}
    try:
        outcome = trainer.run((recorder,), stop=stop)
        result |= {"step": outcome.step, "stopped": outcome.stopped}
    except Exception as error:  # noqa: BLE001 - whatever it is goes to the test
        result["error"] = f"{type(error).__name__}: {error}"
    flat = {f"{g}/{n}": t.clone() for g, named in trainer.tensors().items() for n, t in named.items()}
    return result | {"seen": list(SEEN), "records": recorder.records}, flat


def main(rank: int, size: int, port: str, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = join_ranks(torch.device("cpu"))
    for scenario in ("train", "stop", "diverge"):
        result, tensors = train(ranks, scenario)
        save_file(tensors, out / f"{scenario}-{rank}.safetensors")
        (out / f"{scenario}-{rank}.json").write_text(json.dumps(result))
    leave_ranks(ranks)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
