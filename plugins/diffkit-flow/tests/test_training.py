"""The objective, its couplings, and reflow."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from diffkit_flow.coupling import optimal
from diffkit_flow.objective import FlowMatching
from diffkit_flow.pairs import Pairs, make_pairs, save_pairs
from diffkit_flow.parameterization import Flow, V
from diffkit_flow.sampler import Straight
from diffkit_flow.schedule import Rectified
from diffkit_flow.times import LogitNormal
from torch import Tensor

from diffkit import DataError, Model, Network, RandomStreams, UsageError, sample
from diffkit.basics.grid import Trailing
from diffkit.ddpm.objective import Simple
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.sampler import Ancestral
from diffkit.ddpm.schedule import Linear
from diffkit.ddpm.weighting import SNR
from diffkit.testing import GaussianOracle

F64 = torch.float64
X0 = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))


class Silent(Network):
    """Return 0, and store the arguments of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(()))
        self.inputs: list[Tensor] = []
        self.labels: list[Tensor | None] = []

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.inputs.append(x)
        self.labels.append(label)
        return self.gain * x


def test_without_a_coupling_the_loss_is_the_simple_one() -> None:
    """Number for number, for each parameterization, times and weighting: equal draws of the same streams."""
    for model in (Model(Silent(), Flow(), Rectified()), Model(Silent(), V(), Linear())):
        for weighting in (None, SNR()):
            ours = FlowMatching(weighting=weighting, times=LogitNormal())
            theirs = Simple(weighting=weighting, times=LogitNormal())
            a, b = ours(model, X0, RandomStreams(0, 5, 6)), theirs(model, X0, RandomStreams(0, 5, 6))
            torch.testing.assert_close(a.each, b.each)
            torch.testing.assert_close(a.mean, b.mean)
            assert torch.equal(a.t, b.t)


class Headed(Silent):
    """The same, with a second output channel behind the first for each channel."""

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.cat([super().forward(x, c_noise, label), torch.full_like(x, 7.0)], dim=1)


def test_a_head_for_the_variance_is_left_alone() -> None:
    """One channel too: numbers of another shape would broadcast without an error."""
    for x0 in (X0, torch.randn(6, 1, 4, 4), torch.randn(6, 3, 4, 4)):
        plain, headed = (Model(net, Flow(), Rectified()) for net in (Silent(), Headed()))
        a, b = (FlowMatching()(model, x0, RandomStreams(0, 5, 6)) for model in (plain, headed))
        torch.testing.assert_close(a.each, b.each)


def test_the_loss_of_a_silent_network_is_the_velocity() -> None:
    network = Silent()
    loss = FlowMatching()(Model(network, Flow(), Rectified()), X0, RandomStreams(0, 5, 6))
    eps = RandomStreams(0, 5, 6).normal("noise", X0)
    torch.testing.assert_close(loss.each, (eps - X0).square().mean(1))
    t = loss.t[:, None].float()
    torch.testing.assert_close(network.inputs[0], (1 - t) * X0 + t * eps)


def test_the_optimal_coupling_is_the_cheapest_of_all() -> None:
    eps = torch.randn(6, 2, generator=torch.Generator().manual_seed(2))
    cost = lambda rows: float((X0 - rows).square().sum())  # noqa: E731
    found = optimal(X0, eps)
    assert cost(found) == pytest.approx(min(cost(eps[list(p)]) for p in permutations(range(6))))
    assert cost(found) < cost(eps)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, eps.tolist()))


def test_in_one_dimension_the_optimal_coupling_is_monotone() -> None:
    x, eps = torch.randn(50, 1), torch.randn(50, 1)
    order = x[:, 0].argsort()
    paired = optimal(x, eps)[order, 0]
    assert (paired.diff() >= 0).all()


def test_the_coupled_loss_is_smaller_and_straighter() -> None:
    """Pains 25: the option does something. Shorter paths have smaller velocities."""
    model = Model(Silent(), Flow(), Rectified())
    x0 = torch.randn(64, 2, generator=torch.Generator().manual_seed(3))
    independent = FlowMatching()(model, x0, RandomStreams(0, 1, 64)).mean
    coupled = FlowMatching("optimal")(model, x0, RandomStreams(0, 1, 64)).mean
    assert coupled < 0.7 * independent


def test_labels_pass_and_the_noise_of_pairs_does_not_reach_the_network() -> None:
    network, label = Silent(), torch.arange(6)
    eps = torch.randn(6, 2)
    model = Model(network, Flow(), Rectified())
    loss = FlowMatching("pairs")(model, X0, RandomStreams(0, 1, 6), eps=eps, label=label)
    torch.testing.assert_close(loss.each, (eps - X0).square().mean(1))
    assert network.labels[0] is label
    other = FlowMatching()(model, X0, RandomStreams(0, 1, 6), eps=eps)
    assert not torch.allclose(other.each, loss.each)


def test_pairs_without_noise_are_refused() -> None:
    with pytest.raises(DataError, match="requires the noise of each example") as caught:
        FlowMatching("pairs")(Model(Silent(), Flow(), Rectified()), X0, RandomStreams(0, 1, 6))
    assert caught.value.code == "DK340"


def test_update_reaches_the_times() -> None:
    received: list[Tensor] = []

    class Learning(LogitNormal):
        def update(self, t: Tensor, each: Tensor) -> None:
            received.append(each)

    FlowMatching(times=Learning()).update(torch.zeros(3), torch.ones(3))
    assert len(received) == 1


def test_reflow_of_a_gaussian_is_monotone_and_then_one_step_is_exact() -> None:
    """Identity I4: the velocity of the pairs is a function of eps alone, and constant along the path."""
    oracle = GaussianOracle(torch.tensor([0.4], dtype=F64), 0.09)
    levels = Trailing().levels(Rectified(), 400)
    pairs = make_pairs(oracle, Straight(), levels, (1,), 64, seed=3, batch_size=10)
    x0, eps = pairs["x0"], pairs["eps"]
    assert x0.shape == eps.shape == (64, 1)
    order = eps[:, 0].argsort()
    assert (x0[order, 0].diff() > 0).all()
    torch.testing.assert_close(x0, 0.4 + 0.3 * eps, rtol=1e-2, atol=1e-2)

    class Again(Network):
        """The least squares of the pairs: u as an affine function of x at each t."""

        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
            t = float(c_noise[0]) / 1000.0
            at = (1 - t) * x0 + t * eps
            design = torch.cat([at, torch.ones_like(at)], 1)
            fit = torch.linalg.lstsq(design, eps - x0).solution
            return torch.cat([x, torch.ones_like(x)], 1) @ fit

    once = sample(Model(Again(), Flow(), Rectified()), Straight(), Trailing().levels(Rectified(), 1), eps)
    torch.testing.assert_close(once, x0, rtol=1e-2, atol=1e-2)


def test_pairs_do_not_depend_on_the_batch_size() -> None:
    """Pains 16."""
    oracle = GaussianOracle(torch.tensor([0.4, -1.0]), 0.09)
    levels = Trailing().levels(Rectified(), 5)
    one, other = (make_pairs(oracle, Straight(), levels, (2,), 9, batch_size=b) for b in (9, 4))
    assert torch.equal(one["eps"], other["eps"])
    torch.testing.assert_close(one["x0"], other["x0"])


def test_a_stochastic_sampler_makes_no_pairs() -> None:
    oracle, levels = GaussianOracle(torch.tensor([0.4]), 0.09), Trailing().levels(Rectified(), 5)
    with pytest.raises(UsageError, match="deterministic") as caught:
        make_pairs(oracle, Ancestral(), levels, (1,), 4)
    assert caught.value.code == "DK060"


def test_pairs_as_data(tmp_path: Path) -> None:
    x0, eps, label = torch.randn(20, 1, 4, 4), torch.randn(20, 1, 4, 4), torch.arange(20) % 3
    path = tmp_path / "pairs.safetensors"
    save_pairs({"x0": x0, "eps": eps, "label": label}, path)
    data = Pairs(str(path), held_out=0.2)
    assert data.spec.shape == (1, 4, 4)
    assert data.spec.classes == 3
    train, held_out = data.split("train"), data.split("held-out")
    assert (len(train), len(held_out)) == (16, 4)
    x, cond = held_out[1]
    assert torch.equal(x, x0[17])
    assert torch.equal(cond["eps"], eps[17])
    assert cond["label"] == label[17]
    before = data.fingerprint()
    save_pairs({"x0": x0 + 1, "eps": eps}, path)
    assert Pairs(str(path), held_out=0.2).fingerprint() != before
    assert Pairs(str(path)).spec.classes is None


def test_damaged_and_missing_pairs(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _ = Pairs(str(tmp_path / "none")).spec
    assert caught.value.code == "DK301"
    (tmp_path / "bad").write_bytes(b"not a file of tensors")
    with pytest.raises(DataError) as caught:
        _ = Pairs(str(tmp_path / "bad")).spec
    assert caught.value.code == "DK302"
    for wrong in ({"x0": torch.zeros(3, 2)}, {"x0": torch.zeros(3, 2), "eps": torch.zeros(2, 2)}):
        save_pairs(wrong, tmp_path / "odd")
        with pytest.raises(DataError) as caught:
            _ = Pairs(str(tmp_path / "odd")).spec
        assert caught.value.code == "DK308"


def test_eps_prediction_trains_with_a_coupling_too() -> None:
    """Pains 5: objective and prediction are two choices."""
    loss = FlowMatching("optimal")(Model(Silent(), Eps(), Linear()), X0, RandomStreams(0, 1, 6))
    assert loss.mean.requires_grad
    assert torch.isfinite(loss.each).all()
