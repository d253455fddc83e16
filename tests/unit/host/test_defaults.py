"""The two plugins that diffkit brings: what they own, and that it is there."""

from __future__ import annotations

import pytest

from diffkit.host import Registry
from diffkit.host.discovery import Switches

DEFAULTS = Registry.discover(Switches(frozenset()))
OWNED = """
schedule linear scaled-linear
parameterization eps x0 mu
network unet mlp oracle
sampler ancestral
objective simple vlb
weighting uniform snr vlb
grid linspace leading trailing quadratic
times uniform stratified
guidance clip threshold cfg
codec identity affine
reconstruction-loss
conditioner unchanged label text concat
augmentation flip
data digits gaussian mixture arrays images dataset shards huggingface mnist fashion-mnist cifar10
metric frechet sliced-wasserstein mmd nearest-neighbour accuracy classifier bits-per-dim
optimizer adam adamw
lr-schedule constant linear cosine wsd inverse-sqrt
strategy single auto ddp fsdp
callback weight-norms
tracker tensorboard wandb mlflow
"""


def test_the_defaults_own_their_names() -> None:
    for line in OWNED.strip().splitlines():
        kind, *names = line.split()
        assert [one.name for one in DEFAULTS.entries(kind)] == names
    assert len(DEFAULTS.entries()) == len(OWNED.split()) - len(OWNED.strip().splitlines())
    assert {line.split()[0] for line in OWNED.strip().splitlines()} == DEFAULTS.kinds.keys()


@pytest.mark.parametrize("one", DEFAULTS.entries(), ids=lambda one: f"{one.kind}-{one.name}")
def test_every_default_loads(one) -> None:
    assert one.load().__name__ == one.entry.target.partition(":")[2]


def test_summaries_fit_a_line() -> None:
    for one in DEFAULTS.entries():
        assert len(one.entry.summary) <= 60
        assert not one.entry.summary.endswith(".")
