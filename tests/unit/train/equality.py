"""Run by the tests of strategies: train in forked processes and write down what came out.

usage: equality.py SIZE[,SIZE...] OUT STRATEGY:TYPE[:OPTION...]...
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import toys
from safetensors.torch import save_file
from torch import Tensor, nn

from diffkit.basics.lr_schedules import Constant
from diffkit.basics.optimizers import AdamW
from diffkit.basics.sharding import FSDP
from diffkit.basics.strategies import DDP
from diffkit.denoiser import Model
from diffkit.network import Network
from diffkit.runtime.distributed import SINGLE_PROCESS, Ranks, join_ranks, leave_ranks
from diffkit.strategy import SingleProcess, Strategy, local
from diffkit.train.config import EmaConfig, TrainConfig
from diffkit.train.trainer import Trainer

STRATEGIES: dict[str, Strategy] = {"single": SingleProcess(), "ddp": DDP(), "fsdp": FSDP()}
AVERAGES = (EmaConfig(decay=0.9), EmaConfig(name="power", power=3.0))
SIZES = {"steps": 30, "batch_size": 11, "accumulate": 2, "log_every": 10, "checkpoint_every": 0, "sample_every": 10}
CONFIG = TrainConfig(**SIZES, clip=0.5, ema=AVERAGES)  # type: ignore[arg-type]


class Deep(Network):
    """A network of blocks, with a label, a frozen parameter and a parameter without dimensions."""

    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 4)
        self.middle = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.label = nn.Embedding(toys.CLASSES + 1, width)
        self.frozen = nn.Parameter(torch.full((4,), 0.5), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        h = torch.cat([x, c_noise[:, None] / 1000], 1).to(self.scale.dtype)
        h = self.first(h).tanh()
        if label is not None:
            h = h + self.label(label)
        for block in self.middle:
            h = h + block(h).tanh()
        return self.last(h) * self.frozen * self.scale  # type: ignore[no-any-return]


def trainer(case: str, ranks: Ranks) -> Trainer:
    """The trainer of a case: the same start in every process."""
    name, kind, *options = case.split(":")
    torch.manual_seed(0)
    network = Deep(width=int(next((o[5:] for o in options if o.startswith("width")), 24)))
    objective = toys.Simple(times=toys.Importance(50)) if "importance" in options else toys.Simple()
    problem = toys.task(toys.Whole(), objective, dropout=0.0)
    network = network.double() if kind == "float64" else network
    problem = replace(problem, model=replace(problem.model, network=network))
    plain = {"batch_size": 12, "accumulate": 1, "clip": None, "ema": AVERAGES[:1]} if "plain" in options else {}
    config = CONFIG.model_copy(update={"checkpointing": "checkpointing" in options, **plain})
    strategy = SingleProcess() if ranks.size == 1 and name == "ddp" else STRATEGIES[name]
    return Trainer(problem, config, AdamW(lr=3e-3), Constant(warmup=3), strategy, ranks=ranks)


def run(case: str, ranks: Ranks) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the training of a case gives: facts, and whole tensors."""
    made, looks = trainer(case, ranks), []

    def look(step: int, model: Model) -> None:
        """What a callback of the first process alone computes with the model."""
        weights = next(model.network.parameters())
        x = torch.linspace(-1, 1, 4, dtype=weights.dtype).expand(3, 4)
        looks.append(float(model.network(x, torch.zeros(3, dtype=weights.dtype)).sum()))

    made.run((toys.Recorder(preview=look),) if ranks.is_main else ())
    groups = made.tensors()
    held = sum(local(t).numel() for named in groups.values() for t in named.values())
    whole = {
        f"{group}/{name}": (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()
        for group, named in groups.items()
        for name, tensor in named.items()
    }
    return {"held": held, "whole": sum(t.numel() for t in whole.values()), "looks": looks}, whole


def child(rank: int, size: int, port: int, out: Path, cases: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = join_ranks(torch.device("cpu")) if size > 1 else SINGLE_PROCESS
    for case in cases:
        facts, tensors = run(case, ranks)
        save_file(tensors, out / f"{case}-{rank}-of-{size}.safetensors")
        (out / f"{case}-{rank}-of-{size}.json").write_text(json.dumps(facts))
    leave_ranks(ranks)


def main(size: int, out: Path, cases: list[str]) -> int:
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(size):
        if not (pid := os.fork()):
            code = 1
            try:
                child(rank, size, port, out, cases)
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)


if __name__ == "__main__":
    sys.exit(max(main(int(size), Path(sys.argv[2]), sys.argv[3:]) for size in sys.argv[1].split(",")))
