"""How good digits are after equal training time: our recipes beside diffusers' U-Net in the loop of its example.

    python benchmarks/digits_quality.py [--seconds 240] [--threads 2] [--recipe NAME ...] [--seed 0] [--count 512]
                                        [--width 28] [--layers 2] [--turn 10] [--json OUT]

Contestants: recipes through our trainer, drawn as they say; diffusers' UNet2DModel (attention at 4x4, about as many
parameters: --width 28 --layers 2 or --width 32 --layers 1) with the settings of its unconditional example (AdamW,
lr 1e-4, betas (.95, .999), decay 1e-6, cosine, EMA up to .9999 with power 3/4), and with lr 1e-3 and EMA .995, drawn as
the recipe `digits` says. All take batches of its size. Each first trains a little to learn its speed and is then built
anew, so that its learning rate ends with its time; after that they train by turns. Time is that of the CPU, all threads
together, as the process counts it, so other work on the machine takes none of it. Samples are drawn from the averages,
from the same noise, and held against the 1,285 training digits; the last row is that of 512 real digits which nobody
trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffkit import Assembly, Evaluation, Model, Network, Split, assemble, build, load_recipe
from diffkit.data import stack
from diffkit.recipe.effective import effective
from diffkit.runs.planning import evaluation_plan
from diffkit.runs.sampling import SampleBatch, draw_samples
from diffkit.runs.training import make_trainer

METRICS = {
    "Frechet": ("frechet", "frechet"),
    "sliced W2": ("sliced-wasserstein", "sliced_wasserstein"),
    "two-sample": ("classifier", "two_sample"),
}
REHEARSAL = 0.08
LEAST = 1.0
BATCH = 256


@dataclass
class Contestant:
    """One that trains: `advance(until)` trains while its CPU time is below `until` and steps are left."""

    title: str
    assembly: Assembly
    parameters: int
    steps: int
    advance: Callable[[float], None]
    done: Callable[[], int]
    model: Callable[[], Model]
    seconds: float = 0.0

    def turn(self, seconds: float) -> None:
        """Train for so many CPU seconds, as far as steps are left."""
        began = time.process_time()
        self.advance(began + seconds)
        self.seconds += time.process_time() - began


def ours(assembly: Assembly, steps: int) -> Contestant:
    """The recipe, its learning rate stretched over `steps`; weights are those that its seed gives, at every call."""
    warmup = min(assembly.recipe.train.lr_schedule.options.get("warmup", 0), steps // 10)
    changes = [f"train.steps={steps}", "train.validate_every=0", "train.sample_every=0"]
    changes.append(f"train.lr_schedule.warmup={warmup}")
    trainer = make_trainer(assemble(load_recipe(effective(assembly.recipe), changes)), torch.device("cpu"))

    def advance(until: float) -> None:
        if trainer.step < steps:
            trainer.run(stop=lambda: time.process_time() >= until)

    def model() -> Model:
        return trainer.engine.average_model or trainer.engine.model

    count = sum(p.numel() for p in trainer.engine.network.parameters())
    return Contestant(
        f"diffkit, recipe {assembly.recipe.name}", assembly, count, steps, advance, lambda: trainer.step, model
    )


@dataclass(frozen=True)
class Peer:
    """Settings of a loop of diffusers."""

    title: str
    lr: float
    average: Mapping[str, Any]
    optimizer: Mapping[str, Any] = field(default_factory=dict)


PEERS = (
    Peer(
        "diffusers, its example",
        1e-4,
        {"decay": 0.9999, "use_ema_warmup": True, "inv_gamma": 1.0, "power": 0.75},
        {"betas": (0.95, 0.999), "weight_decay": 1e-6, "eps": 1e-8},
    ),
    Peer("diffusers, lr 1e-3, EMA .995", 1e-3, {"decay": 0.995}, {"weight_decay": 1e-6}),
)


class Theirs(Network):
    """A UNet2DModel as our sampling loop calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """x: (B, 1, 8, 8), c_noise: (B,)."""
        out: Tensor = self.model(x, c_noise, return_dict=False)[0]
        return out


def theirs(assembly: Assembly, peer: Peer, steps: int, width: int, layers: int, seed: int) -> Contestant:
    """diffusers' model and loop."""
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    net: Any = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=layers,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    return example(assembly, peer, net, _train_digits(assembly), assembly.recipe.train.batch_size, steps, seed)


def example(assembly: Assembly, peer: Peer, net: Any, data: Tensor, size: int, steps: int, seed: int) -> Contestant:
    """The loop of diffusers' unconditional example around a network, on data (N, C, H, W), in batches of `size`."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    adam = torch.optim.AdamW(net.parameters(), lr=peer.lr, **peer.optimizer)
    rate = get_scheduler("cosine", adam, num_warmup_steps=min(500, steps // 10), num_training_steps=steps)
    average = EMAModel(net.parameters(), **peer.average)
    source = torch.Generator().manual_seed(seed)
    step = 0

    def advance(until: float) -> None:
        nonlocal step
        net.train()
        while step < steps and time.process_time() < until:
            x0 = data[torch.randint(len(data), (size,), generator=source)]
            noise = torch.randn(x0.shape, generator=source)
            t = torch.randint(0, 1000, (size,), generator=source)
            loss = nn.functional.mse_loss(net(scheduler.add_noise(x0, noise, t), t).sample, noise)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            adam.step()
            rate.step()
            adam.zero_grad()
            average.step(net.parameters())
            step += 1

    def model() -> Model:
        average.copy_to(net.parameters())
        return replace(assembly.model, network=Theirs(net))

    count = sum(p.numel() for p in net.parameters())
    return Contestant(peer.title, assembly, count, steps, advance, lambda: step, model)


def held_out(count: int) -> tuple[Assembly, Tensor]:
    """Real digits that nobody trained on, (N, 1, 8, 8)."""
    assembly = assemble(load_recipe("digits"))
    return assembly, _decoded(assembly, assembly.data.split("held-out"))[:count]


def _train_digits(assembly: Assembly) -> Tensor:
    return _decoded(assembly, assembly.data.split("train"))


def _decoded(assembly: Assembly, part: Split) -> Tensor:
    raw, _ = stack(part, range(len(part)))
    return assembly.data.to_model_range(raw)


def contest(builders: list[Callable[[int], Contestant]], seconds: float, turn: float) -> list[Contestant]:
    """Learn how fast each is, build it for as many steps as its time allows, and train all by turns.

    The rehearsal is by turns too, so that a machine that becomes busier slows all of them equally.
    """
    trials = [build_one(10**6) for build_one in builders]
    for trial in trials:
        trial.turn(LEAST / 2)  # first steps are slow
    before = [(trial.done(), trial.seconds) for trial in trials]
    share = max(LEAST, REHEARSAL * seconds)
    turns = math.ceil(share / turn)
    for trial in trials * turns:
        trial.turn(share / turns)
    found = []
    for build_one, trial, (done, spent) in zip(builders, trials, before, strict=True):
        speed = (trial.done() - done) / (trial.seconds - spent)
        found.append(build_one(max(10, int(0.97 * seconds * speed))))
    while any(one.seconds < seconds and one.done() < one.steps for one in found):
        for one in found:
            if one.seconds < seconds and one.done() < one.steps:
                one.turn(min(turn, seconds - one.seconds))
    return found


def drawn(one: Contestant, count: int, seed: int) -> SampleBatch:
    """`count` samples, as the recipe says for its evaluation."""
    assembly, model = one.assembly, one.model()
    model.network.eval()
    steps = assembly.recipe.evaluate.steps or assembly.steps
    levels = assembly.evaluation_grid.levels(assembly.schedule, steps)
    chosen = evaluation_plan(assembly, count=count, seed=seed, levels=levels, batch_size=BATCH)
    return draw_samples(model, chosen, assembly.codec, "cpu")


def scores(assembly: Assembly, x: Tensor, seed: int) -> dict[str, float]:
    """The three numbers of some samples, as the metrics of diffkit give them."""
    parts = {part: _decoded(assembly, assembly.data.split(part)) for part in ("train", "held-out")}
    evaluation = Evaluation(assembly.spec, x, parts["train"], parts["held-out"], seed=seed)
    return {title: float(build("metric", metric)(evaluation)[value]) for title, (metric, value) in METRICS.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---" for _ in head) + "|"]
    lines += ["| " + " | ".join(_cell(row[name]) for name in head) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Train, draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="CPU seconds of training of each contestant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipe", nargs="+", default=["digits", "digits-flow"])
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=28, help="block_out_channels (W, 2 W)")
    parser.add_argument("--layers", type=int, default=2, help="layers_per_block")
    parser.add_argument("--turn", type=float, default=10.0, help="CPU seconds of a turn")
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    builders: list[Callable[[int], Contestant]] = []
    for name in told.recipe:
        own = assemble(load_recipe(name, [f"seed={told.seed}"]))
        builders.append(lambda n, own=own: ours(own, n))  # type: ignore[misc]
    common = assemble(load_recipe("digits", [f"seed={told.seed}"]))
    for peer in PEERS:
        builders.append(lambda n, peer=peer: theirs(common, peer, n, told.width, told.layers, told.seed))  # type: ignore[misc]
    rows: list[dict[str, Any]] = []
    for one in contest(builders, told.seconds, told.turn):
        found = drawn(one, told.count, told.seed)
        costs = {"parameters": one.parameters, "steps": one.done(), "seconds": float(round(one.seconds, 1))}
        measured = scores(one.assembly, found.x, told.seed)
        rows.append({"after equal time": one.title, **costs, "evaluations": found.nfe, **measured})
    blank = dict.fromkeys(("parameters", "steps", "seconds", "evaluations"), "")
    rows.append({"after equal time": "real digits, held out", **blank, **scores(*held_out(told.count), told.seed)})
    print(table(rows))
    print(f"\n{told.count} samples, {told.threads} threads", file=sys.stderr)
    if told.json:
        told.json.write_text(
            json.dumps({"arguments": {k: str(v) for k, v in vars(told).items()}, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
