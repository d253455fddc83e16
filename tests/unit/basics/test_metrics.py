"""Metrics: ideal values for equal sets, closed forms on Gaussians, and independence of other random numbers."""

import sys
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, strategies as st
from sklearn.ensemble import ExtraTreesClassifier

from diffkit.basics.metrics.classifier import Classifier
from diffkit.basics.metrics.frechet import Frechet, frechet_distance, moments
from diffkit.basics.metrics.mmd import MMD, Kernel
from diffkit.basics.metrics.nearest_neighbour import NearestNeighbour
from diffkit.basics.metrics.pixels import pixels
from diffkit.basics.metrics.sliced_wasserstein import SlicedWasserstein, sliced_wasserstein
from diffkit.data import DataSpec
from diffkit.errors import DataError, PluginError
from diffkit.metric import Evaluation, Peers

VECTORS = DataSpec(3)
IMAGES = DataSpec(1, (4, 4), 2, bounded=True, bins=256)
METRICS = [Frechet(), SlicedWasserstein(), MMD(), MMD(kernel="energy"), NearestNeighbour(), Classifier(trees=20)]


def normal(count: int, seed: int, mean: float = 0.0, std: float = 1.0, dimensions: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(count, dimensions, generator=generator)


def vectors(samples: torch.Tensor, count: int = 400, **others) -> Evaluation:
    return Evaluation(VECTORS, samples, normal(count, 1), normal(count, 2), **others)


def headline(metric, evaluation: Evaluation) -> float:
    return next(iter(metric(evaluation).values()))


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: f"{type(m).__name__}-{getattr(m, 'kernel', '')}")
def test_every_metric_is_repeatable_says_its_counts_and_leaves_global_randomness_alone(metric):
    evaluation = vectors(normal(300, 3, mean=0.5))
    state = torch.get_rng_state()
    first = metric(evaluation)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert metric(evaluation) == first
    assert first["samples"] == 300
    assert first["reference"] in (300, 400)
    assert all(isinstance(value, float) for value in first.values())
    assert metric.definition.rstrip()


@pytest.mark.parametrize("metric", METRICS[:4], ids=lambda m: f"{type(m).__name__}-{getattr(m, 'kernel', '')}")
def test_distances_vanish_for_equal_distributions_and_grow(metric):
    values = [headline(metric, vectors(normal(400, 3, mean=mean))) for mean in (0.0, 0.5, 2.0)]
    assert abs(values[0]) < 0.3 * values[1]
    assert values[1] < 0.5 * values[2]


def test_seed_changes_what_is_drawn():
    a, b = (headline(SlicedWasserstein(projections=4), vectors(normal(50, 3), seed=seed)) for seed in (0, 1))
    assert a != b
    assert abs(a - b) < 0.2


def test_frechet_closed_form_of_diagonal_gaussians():
    """|m - m'|^2 + sum_i (s_i - s'_i)^2."""
    scale = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    a, b = normal(200_000, 1).double() * scale, normal(200_000, 2, mean=2.0).double()
    assert frechet_distance(a, b) == pytest.approx(3 * 4 + 0.25 + 0 + 4, rel=0.01)


def test_frechet_is_exact_for_given_moments_of_general_covariances():
    """Against tr (S S')^(1/2) from the eigenvalues of S S', which is similar to a positive matrix."""
    a, b = (
        normal(50, 1, dimensions=6).double(),
        normal(40, 2, dimensions=6).double() @ normal(6, 3, dimensions=6).double(),
    )
    s, r = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(s @ r).real.clamp(min=0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + s.trace() + r.trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-10)


@given(n=st.integers(2, 30), m=st.integers(2, 30), d=st.integers(1, 40))
def test_frechet_of_singular_covariances(n, m, d):
    """Fewer examples than dimensions: no negative value, and the shift of a set against itself is exact."""
    a, b = normal(n, 1, dimensions=d).double(), normal(m, 2, dimensions=d).double()
    assert frechet_distance(a, b) >= 0
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2.0) == pytest.approx(4 * d, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-8, abs=1e-9)


def test_moments_come_from_blocks_and_do_not_depend_on_the_processes():
    """Three blocks, of which two processes compute a share each; and the factors of one matrix at once."""
    x = normal(2500, 1, dimensions=5).double() * torch.tensor([1.0, 1e-6, 3.0, 0.0, 1.0]) + 4

    class Two(Peers):
        shares: tuple[list[int], list[int]] = [], []

        def in_order(self, compute, count):
            for number in range(count):
                self.shares[number % 2].append(number)
                yield compute(number)

    (mean, root), (again, shared) = moments(x), moments(x, peers=Two())
    assert Two.shares == ([0, 2, 0, 2], [1, 1])
    assert torch.equal(mean, again)
    assert torch.equal(root, shared)
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(root.T @ root, torch.cov(x.T), rtol=1e-12, atol=1e-15)
    assert torch.equal(moments(x, torch.arange(2000, 2500))[0], moments(x[2000:])[0])


@pytest.mark.parametrize(
    "metric", [SlicedWasserstein(), SlicedWasserstein(projections=70, p=1.0), *METRICS[4:]], ids=str
)
def test_values_come_from_blocks_that_processes_share(metric, monkeypatch):
    """The values of a single block, from many blocks, of which two processes compute a share each."""
    whole, shares = vectors(normal(300, 3, mean=0.5), train_labels=torch.arange(400) % 3), ([], [])

    class Two(Peers):
        def in_order(self, compute, count):
            for number in range(count):
                shares[number % 2].append(number)
                yield compute(number)

    expected = metric(whole)
    monkeypatch.setattr("diffkit.basics.metrics.pixels.BLOCK_BYTES", 8 * 70 * 90)
    monkeypatch.setattr("diffkit.basics.metrics.nearest_neighbour.CHUNK", 90)
    assert metric(replace(whole, peers=Two())) == pytest.approx(expected, rel=1e-12)
    assert len(shares[1]) > 1


def test_pixels_are_compared_as_files_hold_them():
    """One stated rule for rounding, so that numbers can be compared (pains 14)."""
    x = torch.tensor([[-1.0, -0.999, 0.0, 1.0, 1.7]])
    spec = DataSpec(5, bounded=True)
    torch.testing.assert_close(pixels(x, spec), (x.double() + 1) / 2)
    torch.testing.assert_close(pixels(x, DataSpec(5)), x.double())
    stored = pixels(x, DataSpec(5, bounded=True, bins=17))
    torch.testing.assert_close(stored, torch.tensor([[0, 0, 8 / 16, 1, 1]], dtype=torch.float64))
    assert torch.equal(x, torch.tensor([[-1.0, -0.999, 0.0, 1.0, 1.7]]))


def test_sliced_wasserstein_of_shifted_gaussians():
    """W_2 of a shift d along theta is |theta d|, so the squared mean over the sphere is |d|^2 / D."""
    a = normal(500, 1)
    shift = torch.tensor([3.0, 0.0, 0.0])
    value = headline(SlicedWasserstein(projections=4000), Evaluation(VECTORS, a + shift, a, a))
    assert value == pytest.approx((9 / 3) ** 0.5, rel=0.03)


@given(n=st.integers(1, 12), m=st.integers(1, 12), p=st.sampled_from([1.0, 2.0, 3.0]))
def test_wasserstein_on_a_line_is_exact_for_unequal_counts(n, m, p):
    """Repeating each value m and n times gives equal counts, where sorted values are matched one to one."""
    a, b = normal(n, 1, dimensions=1).double(), normal(m, 2, dimensions=1).double()
    long_a, long_b = a.repeat_interleave(m, 0).sort(0).values, b.repeat_interleave(n, 0).sort(0).values
    expected = float((long_a - long_b).abs().pow(p).mean() ** (1 / p))
    assert sliced_wasserstein(a, b, torch.ones(1, 1, dtype=torch.float64), p) == pytest.approx(expected, rel=1e-12)


@dataclass(frozen=True)
class WithKernel(MMD):
    """The metric with a kernel of its own, a function of squared distances."""

    function: Kernel | None = None

    def _kernel(self, reference: torch.Tensor) -> Kernel:
        assert self.function is not None
        return self.function


def mmd(samples: torch.Tensor, train: torch.Tensor, kernel: Kernel) -> float:
    evaluation = Evaluation(DataSpec(samples.shape[1]), samples, train, train)
    return headline(WithKernel(function=kernel), evaluation)


def test_mmd_closed_form_of_gaussians():
    """E k(x, y) = (b^2 / (b^2 + 2))^(D/2) exp(-|d|^2 / (2 (b^2 + 2))) for unit Gaussians d apart."""
    a, b = normal(4000, 1), normal(4000, 2, mean=1.0)
    bandwidth = 1.5
    own = (bandwidth**2 / (bandwidth**2 + 2)) ** 1.5
    expected = 2 * own * (1 - torch.exp(torch.tensor(-3 / (2 * (bandwidth**2 + 2)))).item())
    value = mmd(a, b, lambda squares: torch.exp(-squares / (2 * bandwidth**2)))
    assert value == pytest.approx(expected, rel=0.03)


def test_mmd_is_unbiased():
    """The mean over many pairs of small sets from one distribution is 0 within its own error."""
    kernel = MMD()._kernel(normal(400, 0).double())
    values = torch.tensor([mmd(normal(10, i), normal(15, 10_000 + i), kernel) for i in range(400)])
    assert abs(values.mean()) < 3 * values.std() / 20
    assert values.min() < 0


def test_energy_distance_on_a_line():
    """2 E|x - y| - E|x - x'| - E|y - y'| of two points and two points."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0]])
    assert mmd(a, b, lambda squares: -squares.sqrt()) == pytest.approx(2 * 3.5 - 1 - 2)


def test_mmd_options():
    evaluation = vectors(normal(300, 3, mean=0.5))
    assert headline(MMD(bandwidths=(0.1,)), evaluation) != headline(MMD(bandwidths=(3.0,)), evaluation)
    assert MMD(limit=100)(evaluation)["reference"] == 100
    with pytest.raises(ValueError, match="bandwidths"):
        MMD(bandwidths=())
    with pytest.raises(ValueError, match="bandwidths"):
        MMD(kernel="energy", bandwidths=(1.0,))
    alike = torch.zeros(5, 3)
    assert headline(MMD(), Evaluation(VECTORS, alike, alike, alike)) == pytest.approx(0)


def test_copies_of_training_examples_are_found():
    evaluation = vectors(normal(400, 3))
    fresh = NearestNeighbour()(evaluation)
    assert fresh["ratio"] == pytest.approx(1, abs=0.15)
    assert fresh["close"] < 0.05
    copied = NearestNeighbour()(vectors(evaluation.train[:100]))
    assert copied["ratio"] == 0
    assert copied["close"] == 1
    assert copied["distance"] == 0
    assert NearestNeighbour()(vectors(normal(400, 3, mean=9.0)))["ratio"] > 5


def test_neighbours_for_pictures():
    train = torch.arange(2000.0)[:, None] * torch.ones(1, 3)
    evaluation = Evaluation(VECTORS, train[[700, 3]] + 0.1, train, train)
    indices, distances = NearestNeighbour().neighbours(evaluation, k=3)
    assert indices.tolist() == [[700, 701, 699], [3, 4, 2]]
    torch.testing.assert_close(distances[0], 3**0.5 * torch.tensor([0.1, 0.9, 1.1]).double(), atol=1e-4, rtol=0)
    assert NearestNeighbour().neighbours(Evaluation(VECTORS, train, train[:2], train), k=5)[0].shape == (2000, 2)


def test_two_sample_accuracy():
    judge = Classifier(trees=50)
    assert judge(vectors(normal(400, 3)))["two_sample"] == pytest.approx(0.5, abs=0.06)
    assert judge(vectors(normal(400, 3, mean=5.0)))["two_sample"] > 0.97
    assert Classifier(trees=5, limit=50)(vectors(normal(400, 3)))["samples"] == 50
    assert Classifier(trees=5, folds=2)(vectors(normal(400, 3)))["two_sample"] != judge(vectors(normal(400, 3)))


def test_classes_seen_by_a_classifier():
    """Two classes of images, dark and light; the samples are three quarters light, and one label is wrong."""
    label = (torch.arange(80) % 2).long()
    images = (label[:, None, None, None] - 0.5) * torch.ones(80, 1, 4, 4) + 0.05 * normal(80, 1, dimensions=16).view(
        80, 1, 4, 4
    )
    light = torch.cat([images[label == 1][:30], images[label == 0][:10]])
    made_for = torch.cat([torch.ones(30), torch.zeros(9), torch.ones(1)]).long()
    values = Classifier(trees=20)(Evaluation(IMAGES, light, images, images, made_for, label, label))
    assert values["histogram"] == pytest.approx(0.25)
    assert values["accuracy"] == pytest.approx(39 / 40)
    assert values["real_accuracy"] == 1
    assert values["confidence"] > 0.95
    unlabelled = Classifier(trees=20)(Evaluation(IMAGES, light, images, images, None, label))
    assert "accuracy" not in unlabelled
    assert unlabelled["histogram"] == pytest.approx(0.25)


def test_votes_of_a_few_trees_at_a_time_are_those_of_a_forest():
    labels = torch.arange(60) % 3
    train, judged = normal(60, 1, dimensions=5) + labels[:, None], normal(50, 2, dimensions=5)
    spec = DataSpec(5, classes=3)
    found = Classifier(trees=13)(Evaluation(spec, judged, train, judged, train_labels=labels))
    forest = ExtraTreesClassifier(13, random_state=0).fit(train.float().numpy(), labels.numpy())
    votes = torch.from_numpy(forest.predict_proba(judged.float().numpy()))
    assert found["confidence"] == float(votes.max(1).values.mean())


def test_the_classifier_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(PluginError, match="quickstart") as raised:
        Classifier()(vectors(normal(20, 3)))
    assert raised.value.code == "DK290"


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: type(m).__name__)
def test_samples_that_cannot_be_judged(metric):
    bad = normal(300, 3)
    bad[5, 1] = float("nan")
    with pytest.raises(DataError, match="1 of 300 samples") as raised:
        metric(vectors(bad))
    assert raised.value.code == "DK330"
    with pytest.raises(DataError, match="too few") as raised:
        metric(vectors(normal(0, 3)))
    assert raised.value.code == "DK331"
