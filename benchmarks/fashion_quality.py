"""How good pictures of clothes are after equal CPU time: ours beside diffusers and lucidrains, on Fashion-MNIST.

    python benchmarks/fashion_quality.py OUT --data FOLDER --peer lucidrains=CHECKOUT
                                        [--seconds 1200] [--threads 2] [--seeds 0 1 2] [--count 2000] [--turn 20]
                                        [--size 224] [--limit 10000] [--only NAME ...] [--table]

FOLDER holds the four IDX files. Contestants, about 1.1 million parameters each: the recipe `fashion-edm` of ours;
diffusers' UNet2DModel in the loop of its unconditional example with its settings (AdamW with lr 1e-4, cosine, EMA up to
.9999; drawn by its DDPMScheduler), and tuned (lr 1e-3, EMA .998; drawn by DDIM); the Trainer of
lucidrains/denoising-diffusion-pytorch with its defaults (v, sigmoid schedule, lr 1e-4, EMA .995, flips; DDIM), which
needs accelerate and ema-pytorch. The peers take batches of 16. All train by turns, as in digits_quality.py: 1,200 CPU
seconds are ten minutes on two cores, and other work on the machine takes none of them. Each draws `count` samples with
at most 50 network evaluations for each.

The distance of a contestant is its `fid`, in features of EfficientNet-Lite0, less that of equally many real held-out
pictures. OUT keeps weights, samples and a record for each contestant and seed: a call does what is missing, then prints
the table of all records and names those that are missing; what has a record needs no weights any more. `--table` prints
only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import Switches
from diffkit_fidelity.efficientnet import EfficientNetLite0
from diffkit_fidelity.metrics import FID, PrecisionRecall
from digits_quality import PEERS, Contestant, Peer, contest, drawn, example, ours, table
from peers import _source
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffkit import Assembly, Evaluation, assemble, load_recipe
from diffkit.data import stack

EVALUATIONS = 50
BATCH = 50  # of the peers; with channels last it takes two thirds of the time of 250, lucidrains half
OURS = "diffkit"
REAL = "real, held out"
WIDTH, LUCID_WIDTH = 32, 20
SHIPPED, TUNED = PEERS[0], replace(PEERS[1], average={"decay": 0.998})
SIZE = 16


@dataclass(frozen=True)
class Rules:
    """What all records of one table share."""

    seconds: float
    threads: int
    count: int
    size: int
    limit: int


@dataclass(frozen=True)
class Entrant:
    """A contestant before it is built.

    build      (steps, seed) -> the contestant
    network    its model -> the module whose weights are kept
    draw       (contestant, count, seed) -> samples (N, 1, 28, 28), and network evaluations for each
    """

    build: Callable[[int, int], Contestant]
    network: Callable[[Any], nn.Module]
    draw: Callable[[Contestant, int, int], tuple[Tensor, int]]


def entrants(data: Path, checkouts: Mapping[str, Path]) -> dict[str, Entrant]:
    """All that can take part here."""

    def assembly(seed: int) -> Assembly:
        return assemble(load_recipe("fashion-edm", [f"seed={seed}", f"data.path={data}"]))

    def draw_ours(one: Contestant, count: int, seed: int) -> tuple[Tensor, int]:
        found = drawn(one, count, seed)
        return found.x, found.nfe

    found = {OURS: Entrant(lambda steps, seed: ours(assembly(seed), steps), lambda model: model.network, draw_ours)}
    for name, peer in (("diffusers", SHIPPED), ("diffusers, tuned", TUNED)):
        build = partial(_diffusers, assembly, peer)
        found[name] = Entrant(build, lambda model: model.network.model, partial(_draw_diffusers, peer is SHIPPED))
    if "lucidrains" in checkouts:
        build = partial(_lucidrains, assembly, checkouts["lucidrains"])
        found["lucidrains"] = Entrant(build, lambda model: model, _draw_lucidrains)
    return found


def _diffusers(assembly: Callable[[int], Assembly], peer: Peer, steps: int, seed: int) -> Contestant:
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    net = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(WIDTH, 2 * WIDTH, 2 * WIDTH),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    own = assembly(seed)
    return example(own, peer, net, pictures(own)["train"], SIZE, steps, seed)


def _draw_diffusers(shipped: bool, one: Contestant, count: int, seed: int) -> tuple[Tensor, int]:
    """Draw with DDPMScheduler as the example does, or with DDIM."""
    from diffusers import DDIMScheduler, DDPMScheduler

    net, source, found = one.model().network, torch.Generator().manual_seed(seed), []
    scheduler = DDPMScheduler(1000) if shipped else DDIMScheduler(1000, timestep_spacing="trailing")
    net.eval().to(memory_format=torch.channels_last)
    for size in _batches(count):
        x = torch.randn(size, 1, 28, 28, generator=source)
        scheduler.set_timesteps(EVALUATIONS)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t.expand(size)), t, x, generator=source).prev_sample
        found.append(x.clamp(-1, 1))
    return torch.cat(found), EVALUATIONS


def _lucidrains(assembly: Callable[[int], Assembly], checkout: Path, steps: int, seed: int) -> Contestant:
    """The body of `Trainer.train`, with its defaults, for pictures that lie in memory.

    Its learning rate is constant, so it needs no number of steps and trains until its time ends.
    """
    with _source(Switches(checkout=checkout)):
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet  # type: ignore[import-not-found]
        from ema_pytorch import EMA  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    net = Unet(LUCID_WIDTH, channels=1, dim_mults=(1, 2, 4))
    model = GaussianDiffusion(net, image_size=28, sampling_timesteps=EVALUATIONS)
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(model, beta=0.995, update_every=10)
    own, source, done = assembly(seed), torch.Generator().manual_seed(seed), 0
    data = pictures(own)["train"].add(1).div(2)

    def advance(until: float) -> None:
        nonlocal done
        model.train()
        while time.process_time() < until:
            x0 = data[torch.randint(len(data), (SIZE,), generator=source)]
            flips = torch.rand(SIZE, 1, 1, 1, generator=source) < 0.5
            model(torch.where(flips, x0.flip(3), x0)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            adam.zero_grad()
            average.update()
            done += 1

    count = sum(p.numel() for p in net.parameters())
    return Contestant("lucidrains", own, count, max(steps, 10**6), advance, lambda: done, lambda: average.ema_model)


def _draw_lucidrains(one: Contestant, count: int, seed: int) -> tuple[Tensor, int]:
    torch.manual_seed(seed)
    model: Any = one.model()
    model.eval().to(memory_format=torch.channels_last)
    with open(os.devnull, "w") as nothing, redirect_stderr(nothing):  # it shows each step
        x = torch.cat([model.sample(batch_size=size) for size in _batches(count)])
    return x.mul(2).sub(1), EVALUATIONS


def _batches(count: int) -> Iterator[int]:
    yield from (min(BATCH, count - start) for start in range(0, count, BATCH))


def pictures(assembly: Assembly) -> dict[str, Tensor]:
    """Both parts of the data, in [-1, 1]."""
    found = {}
    for part in ("train", "held-out"):
        split = assembly.data.split(part)
        found[part] = assembly.data.to_model_range(stack(split, range(len(split)))[0])
    return found


class Store:
    """The files of OUT, all made by the same rules. Each has another name at first, so an existing one is whole."""

    def __init__(self, folder: Path, rules: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        kept, text = folder / "rules.json", json.dumps(asdict(rules))
        if not kept.exists():
            self.write(kept, lambda path: path.write_text(text, encoding="utf-8"))
        for field, value in json.loads(kept.read_text(encoding="utf-8")).items():
            if value != asdict(rules)[field]:
                raise SystemExit(f"{folder} was made with {field} = {value}; give it again, or choose another folder")

    def path(self, name: str, seed: int, kind: str) -> Path:
        """The file of a contestant and a seed."""
        return self.folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.{kind}"

    def write(self, path: Path, save: Callable[[Path], object]) -> None:
        """Write a file."""
        draft = path.with_name(f"{path.name}.draft")
        save(draft)
        os.replace(draft, path)


def train(store: Store, found: Mapping[str, Entrant], seed: int, rules: Rules, turn: float) -> None:
    """Train those of a seed that have no weights, by turns."""
    missing = [name for name in found if not store.path(name, seed, "safetensors").exists()]
    builders = [partial(_with_seed, found[name].build, seed) for name in missing]
    for name, one in zip(missing, contest(builders, rules.seconds, turn) if missing else [], strict=True):
        weights = {
            key: value.contiguous().clone() for key, value in found[name].network(one.model()).state_dict().items()
        }
        facts = {"parameters": one.parameters, "steps": one.done(), "seconds": round(one.seconds, 1)}
        metadata = {"facts": json.dumps(facts)}
        store.write(store.path(name, seed, "safetensors"), partial(save_file, weights, metadata=metadata))


def _with_seed(build: Callable[[int, int], Contestant], seed: int, steps: int) -> Contestant:
    return build(steps, seed)


def draw(store: Store, name: str, entrant: Entrant, seed: int, rules: Rules) -> None:
    """Draw the samples of a contestant from its weights."""
    one = entrant.build(1, seed)
    model = one.model()
    entrant.network(model).load_state_dict(load_file(store.path(name, seed, "safetensors")))
    with torch.no_grad():
        x, evaluations = entrant.draw(replace(one, model=lambda: model), rules.count, seed)
    if evaluations > EVALUATIONS:
        raise SystemExit(f"{name} used {evaluations} network evaluations, {EVALUATIONS} are allowed")
    values = x.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)[:, 0].numpy()

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, x=values, evaluations=evaluations)

    store.write(store.path(name, seed, "npz"), save)


def measure(store: Store, name: str, seed: int, assembly: Assembly, rules: Rules) -> None:
    """Write the record of a contestant: its samples as they lie in the file, or real held-out pictures."""
    parts, facts = pictures(assembly), {}
    if name == REAL:
        x = parts["held-out"][torch.randperm(len(parts["held-out"]), generator=torch.Generator().manual_seed(seed))]
        x = x[: rules.count]
    else:
        with (
            np.load(store.path(name, seed, "npz")) as file,
            safe_open(store.path(name, seed, "safetensors"), "pt") as w,
        ):
            x = torch.from_numpy(file["x"])[:, None].float().div(127.5).sub(1)
            facts = {**json.loads(w.metadata()["facts"]), "evaluations": int(file["evaluations"])}
    evaluation = Evaluation(assembly.spec, x, parts["train"], parts["held-out"], seed=seed)
    features = EfficientNetLite0(size=rules.size)
    values: dict[str, float] = {}
    for metric in (FID(features=features, limit=rules.limit), PrecisionRecall(features=features, limit=rules.limit)):
        values |= metric(evaluation)
    record = {"name": name, "seed": seed, "rules": asdict(rules), "facts": facts, "values": values}
    record["protocol"] = dict(FID(features=features, limit=rules.limit).protocol(evaluation))
    text = json.dumps(record, indent=1)
    store.write(store.path(name, seed, "json"), lambda path: path.write_text(text, encoding="utf-8"))


def records(store: Store) -> list[dict[str, Any]]:
    """All records."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(store.folder.glob("*-*.json"))]


def rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each contestant: means over seeds, and the standard deviation of the distance."""
    real = {one["seed"]: one["values"]["fid"] for one in found if one["name"] == REAL}
    table_rows = []
    for name in dict.fromkeys(one["name"] for one in found):
        own = [one for one in found if one["name"] == name]
        gaps = [one["values"]["fid"] - real[one["seed"]] for one in own if one["seed"] in real]
        spread = f" ± {statistics.stdev(gaps):.3g}" if len(gaps) > 1 else ""
        facts = {key: _mean(own, "facts", key) for key in ("parameters", "steps", "evaluations")}
        table_rows.append(
            {
                "after equal time": name,
                "seeds": len(own),
                **{key: "" if value is None else round(value) for key, value in facts.items()},
                "fid": _mean(own, "values", "fid"),
                "distance": "" if name == REAL or not gaps else f"{statistics.mean(gaps):.3g}{spread}",
                "precision": _mean(own, "values", "precision"),
                "recall": _mean(own, "values", "recall"),
            }
        )
    return sorted(table_rows, key=lambda row: -row["fid"])


def _mean(found: Sequence[Mapping[str, Any]], part: str, key: str) -> Any:
    values = [one[part][key] for one in found if key in one[part]]
    return statistics.mean(values) if values else None


def report(store: Store, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Print the table, the ratio to the best peer, and what is missing."""
    found = records(store)
    if found:
        made = rows(found)
        print(table(made))
        distances = {row["after equal time"]: float(row["distance"].split()[0]) for row in made if row["distance"]}
        peers = {name: value for name, value in distances.items() if name != OURS}
        if peers and OURS in distances:
            best = min(peers, key=lambda name: peers[name])
            print(f"\nthe distance of {OURS} is {distances[OURS] / peers[best]:.3g} of that of {best}, the best peer")
    done = {(one["name"], one["seed"]) for one in found}
    for missing in [f"{name}, seed {seed}" for seed in seeds for name in names if (name, seed) not in done]:
        print(f"unfinished: {missing}")


def main() -> None:
    """Train, draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the four IDX files")
    parser.add_argument("--peer", action="append", default=[], metavar="lucidrains=CHECKOUT")
    parser.add_argument("--seconds", type=float, default=1200.0, help="CPU seconds of training of each contestant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--turn", type=float, default=20.0, help="CPU seconds of a turn")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures that the extractor sees")
    parser.add_argument("--limit", type=int, default=10_000, help="training pictures of the reference")
    parser.add_argument("--only", nargs="+", help="names of contestants")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    checkouts = {name: Path(place).resolve() for name, _, place in (one.partition("=") for one in given.peer)}
    found = entrants(given.data.resolve(), checkouts)
    chosen = {name: found[name] for name in given.only or found}
    rules = Rules(given.seconds, given.threads, given.count, given.size, given.limit)
    store, assembly = (
        Store(given.out, rules),
        assemble(load_recipe("fashion-edm", [f"data.path={given.data.resolve()}"])),
    )
    for seed in () if given.table else given.seeds:
        missing = [name for name in (*chosen, REAL) if not store.path(name, seed, "json").exists()]
        absent = {name: chosen[name] for name in missing if name != REAL}
        train(store, absent, seed, rules, given.turn)
        for name, entrant in absent.items():
            if not store.path(name, seed, "npz").exists():
                draw(store, name, entrant, seed, rules)
        for name in missing:
            measure(store, name, seed, assembly, rules)
            print(f"{name}, seed {seed}: measured", file=sys.stderr)
    report(store, [*chosen, REAL], given.seeds)


if __name__ == "__main__":
    main()
