"""The laws of trained codecs and their losses accept right components, and find one deliberate fault each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from diffkit import Data, DataSpec, Posterior, Reconstruction, ReconstructionLoss, TrainableCodec
from diffkit.testing import check_class


class Linear(TrainableCodec):
    """One linear map for patches, and one back."""

    def __init__(self, data: Data, codes: int = 4) -> None:
        super().__init__()
        self.codes, channels = codes, data.spec.channels
        self.down, self.up = nn.Conv2d(channels, 2 * codes, 2, 2), nn.ConvTranspose2d(codes, channels, 2, 2)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.up.weight

    def spec(self, data: DataSpec) -> DataSpec:
        return replace(data, channels=self.codes, size=tuple(n // 2 for n in data.size), bounded=False, bins=None)

    def posterior(self, x: Tensor) -> Posterior:
        mean, log_std = self.down(x).chunk(2, 1)
        return Posterior(mean, log_std.exp())

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z)


class WrongSize(Linear):
    def spec(self, data: DataSpec) -> DataSpec:
        return replace(super().spec(data), size=data.size)


class AlwaysNoisy(Linear):
    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.posterior(x).sample(torch.ones_like(self.posterior(x).mean))


class Unconnected(Linear):
    def __init__(self, data: Data, codes: int = 4) -> None:
        super().__init__(data, codes)
        self.spare = nn.Linear(2, 2)


class BatchStatistics(Linear):
    def posterior(self, x: Tensor) -> Posterior:
        return super().posterior(x - x.mean(0, keepdim=True))


class RandomDecoder(Linear):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z + 0.1 * torch.randn_like(z))


class MeanTerm(Linear):
    def forward(self, x: Tensor, noise: Tensor | None = None) -> Reconstruction:
        return replace(super().forward(x, noise), terms={"size": self.posterior(x).mean.square().mean()})


@dataclass(frozen=True)
class Squared(ReconstructionLoss):
    weight: float = 1.0
    law_minimum = 0.0

    def __call__(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        return self.weight * self.of(out.x - x).flatten(1).mean(1)

    def of(self, error: Tensor) -> Tensor:
        return error.square()


class OfTheBatch(Squared):
    def __call__(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        return super().__call__(out, x, step).mean().expand(len(x))


class Negative(Squared):
    def of(self, error: Tensor) -> Tensor:
        return -error.square()


class Root(Squared):
    def of(self, error: Tensor) -> Tensor:
        return error.abs().sqrt()


class SquaredWeight(Squared):
    def __call__(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        return self.weight * super().__call__(out, x, step)


class Adversarial(ReconstructionLoss, nn.Module):
    """A loss with a critic, registered as a module under the name of the attribute."""

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight, self.critic = weight, nn.Conv2d(3, 1, 3, 2)

    def __call__(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        return -self.weight * self.critic(out.x).flatten(1).mean(1)

    def critic_loss(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        real, fake = self.critic(x), self.critic(out.x)
        return ((1 - real).relu() + (1 + fake).relu()).flatten(1).mean(1)


class UntrainedCritic(Adversarial):
    def critic_loss(self, out: Reconstruction, x: Tensor, step: int) -> Tensor:
        return super().critic_loss(out, x, step).detach() + 0 * self.critic(x).flatten(1).mean(1)


BROKEN = {
    ("codec", WrongSize): {"shapes"},
    ("codec", AlwaysNoisy): {"posterior"},
    ("codec", Unconnected): {"gradients"},
    ("codec", BatchStatistics): {"each-alone"},
    ("codec", RandomDecoder): {"each-alone", "posterior"},
    ("codec", MeanTerm): {"posterior"},
    ("reconstruction-loss", OfTheBatch): {"each-alone"},
    ("reconstruction-loss", Negative): {"minimum"},
    ("reconstruction-loss", Root): {"gradient"},
    ("reconstruction-loss", SquaredWeight): {"weight"},
    ("reconstruction-loss", UntrainedCritic): {"critic"},
}


@pytest.mark.parametrize(("kind", "cls"), BROKEN, ids=lambda one: one if isinstance(one, str) else one.__name__)
def test_a_fault_breaks_the_law_about_it(kind: str, cls: type) -> None:
    assert {row.law for row in check_class(kind, "broken", cls) if row.verdict == "fail"} == BROKEN[kind, cls]


@pytest.mark.parametrize(
    ("kind", "cls", "least"),
    [("codec", Linear, 5), ("reconstruction-loss", Squared, 6), ("reconstruction-loss", Adversarial, 6)],
)
def test_right_components_keep_the_laws(kind: str, cls: type, least: int) -> None:
    verdicts = [row.verdict for row in check_class(kind, "right", cls)]
    assert "fail" not in verdicts
    assert verdicts.count("pass") >= least
