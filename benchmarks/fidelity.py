"""What the metrics of diffkit-fidelity report for pictures whose fault is known.

    python benchmarks/fidelity.py --data FOLDER [--count 500] [--limit 2000] [--threads 2]

FOLDER holds the four IDX files of Fashion-MNIST. Rows: real held-out pictures, training pictures, blurred and
noisy pictures, and pictures of nine classes of ten.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffkit_fidelity.metrics import FID, KID, InceptionScore, PrecisionRecall
from digits_quality import table
from torch import Tensor
from torch.nn import functional

from diffkit import Evaluation, assemble, build, load_recipe
from diffkit.data import stack


def faults(x: Tensor, labels: Tensor, train: Tensor, count: int) -> dict[str, Tensor]:
    """Pictures (N, 1, 28, 28) by what was done to them."""
    some, source = x[:count], torch.Generator().manual_seed(0)
    noise = torch.randn(some.shape, generator=source)
    return {
        "real, held out": some,
        "training pictures": train[:count],
        "means of 2 x 2 pixels": functional.interpolate(functional.avg_pool2d(some, 2), scale_factor=2.0),
        "noise of 0.1": (some + 0.1 * noise).clamp(-1, 1),
        "without bags": x[labels != 8][:count],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--limit", type=int, default=2000, help="training pictures that are compared with")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    assembly = assemble(load_recipe("fashion-mnist", [f"data.path={given.data.resolve()}", "data.labels=true"]))
    parts = {}
    for part in ("train", "held-out"):
        split = assembly.data.split(part)
        raw, cond = stack(split, range(len(split)))
        parts[part] = assembly.data.to_model_range(raw), cond["label"]
    (train, _), (held_out, labels) = parts["train"], parts["held-out"]
    metrics = [FID(limit=given.limit), KID(limit=given.limit), PrecisionRecall(limit=given.limit), InceptionScore()]
    metrics.append(build("metric", "frechet"))
    rows = []
    for title, x in faults(held_out, labels, train, given.count).items():
        evaluation = Evaluation(assembly.spec, x, train, held_out)
        values = {name: value for metric in metrics for name, value in metric(evaluation).items()}
        names = ("fid", "kid", "precision", "recall", "inception_score", "frechet")
        rows.append({"pictures": title, **{name: float(values[name]) for name in names}})
    print(table(rows))


if __name__ == "__main__":
    main()
