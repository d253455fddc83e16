"""Digits, Gaussians and mixtures: data that comes from no file of the user."""

import sys

import pytest
import torch

from diffkit.basics.data.digits import Digits
from diffkit.basics.data.gaussian import Gaussian
from diffkit.basics.data.mixture import DEFAULT_COMPONENTS, Mixture
from diffkit.data import DataSpec
from diffkit.errors import DataError, PluginError
from diffkit.level import Level

LAYOUTS = list(DEFAULT_COMPONENTS)


def test_digits_parts():
    data = Digits()
    train, held_out = data.split("train"), data.split("held-out")
    assert data.spec == DataSpec(1, (8, 8), 10, True, 17, tuple("0123456789"))
    assert (len(train), len(held_out)) == (1285, 512)
    assert train.x.dtype == torch.uint8
    assert train.x.max() == 16
    shares = torch.bincount(held_out.cond["label"]) / 512
    torch.testing.assert_close(shares, torch.bincount(train.cond["label"]) / 1285, atol=0.002, rtol=0)


def test_digits_decode_to_minus_one_and_one_and_back():
    data = Digits()
    raw = data.split("train").x
    x = data.to_model_range(raw)
    assert (x.min(), x.max()) == (-1, 1)
    torch.testing.assert_close(x, raw / 8 - 1)
    assert torch.equal(data.to_storage(x), raw)
    assert torch.equal(data.to_storage(torch.tensor([-3.0, -0.99, 0.05, 3.0])), torch.tensor([0, 0, 8, 16]).byte())


def test_digits_options():
    assert Digits(labels=False).spec.classes is None
    assert Digits(labels=False).split("train")[0][1] == {}
    assert len(Digits(held_out=100).split("held-out")) == 100
    assert len(Digits(held_out=0.25).split("held-out")) == pytest.approx(449, abs=40)
    assert Digits().fingerprint() == Digits().fingerprint() != Digits(held_out=100).fingerprint()
    with pytest.raises(DataError, match="too few"):
        Digits(held_out=1797).split("train")


def test_digits_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    data = Digits()
    assert data.spec.classes == 10  # building reads nothing
    with pytest.raises(PluginError, match=r'pip install "diffkit\[quickstart\]"') as raised:
        data.split("train")
    assert raised.value.code == "DK290"


@pytest.mark.parametrize(
    ("options", "covariance"),
    [
        ({"std": 2.0}, [[4.0, 0.0], [0.0, 4.0]]),
        ({"std": (1.0, 3.0)}, [[1.0, 0.0], [0.0, 9.0]]),
        ({"covariance": ((2.0, 1.5), (1.5, 2.0))}, [[2.0, 1.5], [1.5, 2.0]]),
        ({"covariance": ((1.0, 1.0), (1.0, 1.0))}, [[1.0, 1.0], [1.0, 1.0]]),
    ],
)
def test_gaussian_has_the_mean_and_covariance_asked_for(options, covariance):
    data = Gaussian(mean=(1.0, -2.0), count=40_000, held_out=10, **options)
    x = data.split("train").x.double()
    assert data.spec == DataSpec(2)
    torch.testing.assert_close(data.matrix, torch.tensor(covariance, dtype=torch.float64))
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, -2.0], dtype=torch.float64), atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), data.matrix, atol=0.15, rtol=0)


def test_gaussian_truth_is_the_conditional_mean():
    """E[x0 | x] = m + alpha S (alpha^2 S + sigma^2)^-1 (x - alpha m) (identity D1)."""
    data = Gaussian(mean=(1.0, -2.0), covariance=((2.0, 1.5), (1.5, 2.0)))
    m, s = torch.tensor(data.mean, dtype=torch.float64), data.matrix
    x = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    x0 = data.truth()(x, Level(0.6, 0.8)).x0
    gain = 0.6 * s @ torch.linalg.inv(0.36 * s + 0.64 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(x0, m + (x - 0.6 * m) @ gain.T)


def test_gaussian_of_one_dimension_and_seeds():
    data = Gaussian(seed=3, count=50, held_out=20)
    assert data.split("train").x.shape == (50, 1)
    assert data.split("held-out").x.shape == (20, 1)
    assert torch.equal(data.split("train").x, Gaussian(seed=3, count=50, held_out=20).split("train").x)
    assert not torch.equal(data.split("train").x, Gaussian(seed=4, count=50, held_out=20).split("train").x)
    assert data.truth()(torch.zeros(4, 1), Level(0.6, 0.8)).x0.shape == (4, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"mean": ()},
        {"mean": (0.0, 0.0), "std": (1.0,)},
        {"mean": (0.0, 0.0), "covariance": ((1.0, 0.0),)},
        {"mean": (0.0, 0.0), "covariance": ((1.0, 0.5), (0.4, 1.0))},
        {"mean": (0.0, 0.0), "covariance": ((1.0, 2.0), (2.0, 1.0))},
        {"mean": (0.0,), "covariance": ((1.0,),), "std": 2.0},
    ],
)
def test_gaussian_refuses_what_is_no_gaussian(options):
    with pytest.raises(ValueError, match=r"mean|std|covariance"):
        Gaussian(**options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mixture_layouts(layout):
    data = Mixture(layout=layout, labels=True, count=4000, held_out=100)
    train = data.split("train")
    k = DEFAULT_COMPONENTS[layout]
    assert data.spec == DataSpec(2, classes=k)
    assert torch.equal(train.cond["label"].unique(), torch.arange(k))
    for component in (0, k - 1):
        spread = train.x[train.cond["label"] == component].std(0)
        torch.testing.assert_close(spread, torch.full((2,), 0.05), atol=0.02, rtol=0)
    assert train.x.abs().max() < 1.3
    wide = Mixture(layout=layout, spread=2.0, count=4000, held_out=100).split("train").x
    assert wide.std() == pytest.approx(2 * float(train.x.std()), rel=0.05)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mixture_truth_is_the_conditional_mean(layout):
    """E[x0 | x] from responsibilities and the components' own means (identities E1)."""
    data = Mixture(layout=layout, std=0.1)
    x = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    m, alpha, sigma = data._means, 0.8, 0.6
    v = alpha**2 * 0.01 + sigma**2
    gaps = x[:, None] - alpha * m
    r = torch.softmax(-gaps.square().sum(-1) / (2 * v), dim=1)[..., None]
    expected = (r * (m + alpha * 0.01 / v * gaps)).sum(1)
    torch.testing.assert_close(data.truth()(x, Level(alpha, sigma)).x0, expected)


def test_mixture_explicit():
    data = Mixture(
        layout="explicit", means=((0.0, 0.0, 0.0), (4.0, 0.0, 0.0)), weights=(1.0, 3.0), stds=(0.1, 0.5), labels=True
    )
    train = data.split("train")
    label = train.cond["label"]
    assert data.spec == DataSpec(3, classes=2)
    assert label.double().mean() == pytest.approx(0.75, abs=0.02)
    assert train.x[label == 1, 0].mean() == pytest.approx(4, abs=0.02)
    assert train.x[label == 1].std(0).mean() == pytest.approx(0.5, abs=0.02)
    one = torch.ones(1, dtype=torch.long)
    known = data.truth()(torch.zeros(1, 3, dtype=torch.float64), Level(0.6, 0.8), label=one).x0
    assert known[0, 0] == pytest.approx(4 + 0.6 * 0.25 / (0.36 * 0.25 + 0.64) * (0 - 2.4))


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "explicit"},
        {"layout": "explicit", "means": ((0.0,), (1.0, 2.0))},
        {"layout": "explicit", "means": ((0.0,),), "weights": (1.0, 2.0)},
        {"layout": "explicit", "means": ((0.0,),), "stds": (1.0,), "std": 2.0},
        {"layout": "explicit", "means": ((0.0,),), "components": 3},
        {"layout": "ring", "means": ((0.0, 0.0),)},
        {"layout": "grid", "components": 5},
        {"layout": "moons", "components": 7},
        {"layout": "checkerboard", "components": 5},
    ],
)
def test_mixture_refuses_options_that_would_do_nothing(options):
    """pains 25."""
    with pytest.raises(ValueError, match=r"means|weights|std|components"):
        Mixture(**options)


@pytest.mark.parametrize(("layout", "k"), [("ring", 3), ("grid", 4), ("moons", 6), ("spiral", 5), ("checkerboard", 2)])
def test_mixture_components(layout, k):
    assert Mixture(layout=layout, components=k, labels=True).spec.classes == k
