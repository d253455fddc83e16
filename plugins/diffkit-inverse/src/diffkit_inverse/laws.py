"""Laws of operators, and of the methods on Gaussian data, whose posterior given a measurement is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffkit import Denoiser, Estimate, Level, SampleNoise, sample
from diffkit.oracles import GaussianOracle
from diffkit.testing import Case, LawResult, NotApplicable, fixtures, law

from .jpeg import BLOCK, TABLE
from .operator import WEIGHTS, Operator, cosine_basis

SHAPE = (3, 8, 16)
"""Pictures of the laws of operators: three channels, two sizes, whole blocks of 8."""
DEFINITION = "the definition of Operator"


def bound(operator: Operator, case: Case, count: int = 2) -> Operator:
    """Return the operator with a mask of about half of the pixels, if it takes one.

    Args:
        operator: the operator.
        case: seeds the mask.
        count: the number of examples.

    Returns:
        The operator for a batch.
    """
    mask = torch.rand(count, 1, *SHAPE[1:], generator=case.generator("mask"), dtype=torch.float64)
    return operator.at(dict.fromkeys(operator.conditions, mask))


def linear(case: Case) -> tuple[Operator, Tensor, Tensor]:
    """Return the operator of a case, a picture x, and any y of the shape of A x. Raises NotApplicable."""
    if not case.component.linear:
        raise NotApplicable("the operator is not linear")
    operator, x = bound(case.component, case), case.normal(2, *SHAPE)
    return operator, x, case.normal(*operator(x).shape, stream="y")


def dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


@law("operator", statement="A (a x + z) = a A x + A z", source=DEFINITION, tolerance=1e-10)
def linearity(case: Case, result: LawResult) -> None:
    """A linear operator has no constant part and no bend."""
    operator, x, _ = linear(case)
    z = case.normal(2, *SHAPE, stream="z")
    result.compare(operator(-2.5 * x + z), -2.5 * operator(x) + operator(z), "A (-2.5 x + z)")


@law(
    "operator",
    statement="<A x, y> = <x, A^T y>, and the gradient of <A x, y> is A^T y",
    source=DEFINITION,
    tolerance=1e-10,
)
def adjoint(case: Case, result: LawResult) -> None:
    """The dot-product test with random x and y."""
    operator, x, y = linear(case)
    result.compare(dot(operator(x), y), dot(x, operator.adjoint(y)), "<A x, y>")
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad((operator(x) * y).sum(), x)
    result.compare(gradient, operator.adjoint(y), "the gradient of <A x, y>")


@law("operator", statement="A A^+ A x = A x", source="Moore and Penrose", tolerance=1e-8)
def pseudo_inverse(case: Case, result: LawResult) -> None:
    """What is measured of A^+ A x is what was measured of x. For a linear A, A^+ A is symmetric, A^+ A A^+ = A^+."""
    operator, x = bound(case.component, case), case.normal(2, *SHAPE)
    y = operator(x)
    back = operator.pseudo_inverse(y)
    result.compare(operator(back), y, "A A^+ A x")
    if case.component.linear:
        z = case.normal(2, *SHAPE, stream="z")
        result.compare(operator.pseudo_inverse(operator(back)), back, "A^+ A A^+ y")
        result.compare(dot(back, z), dot(x, operator.pseudo_inverse(operator(z))), "<A^+ A x, z>")


@law("operator", statement="(a A A^T + b I) solve(y, a, b) = y for y = A x", source=DEFINITION, tolerance=1e-8)
def solves(case: Case, result: LawResult) -> None:
    """a is a number, or one for each example."""
    operator, x, _ = linear(case)
    y = operator(x)
    for a, b in ((0.7, 0.0), (2.0, 0.3), (torch.tensor([0.1, 4.0], dtype=torch.float64), 0.5)):
        v = operator.solve(y, a, b)
        factor = a.reshape(-1, 1, 1, 1) if isinstance(a, Tensor) else a
        result.compare(factor * operator(operator.adjoint(v)) + b * v, y, f"a = {a}, b = {b}")


@law(
    "operator",
    statement="A mixes no examples, keeps the type, and passes a gradient",
    source=DEFINITION,
    tolerance=1e-6,
)
def each_alone(case: Case, result: LawResult) -> None:
    """Every method calls A on a batch, and dps differentiates it."""
    x = case.normal(2, *SHAPE)
    whole = bound(case.component, case)(x)
    mask = torch.rand(2, 1, *SHAPE[1:], generator=case.generator("mask"), dtype=torch.float64)
    for i in range(2):
        alone = case.component.at(dict.fromkeys(case.component.conditions, mask[i : i + 1]))
        result.compare(alone(x[i : i + 1])[0], whole[i], f"example {i} alone")
    narrow = bound(case.component, case)(x.float())
    result.holds(narrow.dtype == torch.float32, f"float32 became {narrow.dtype}", "float32")
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(bound(case.component, case)(x).square().sum(), x)
    result.holds(float(gradient.abs().max()) > 1e-3, "the gradient of |A x|^2 is 0", "another gradient")


@law("operator", statement="y is x if the mask is 1, and 0 elsewhere", source=DEFINITION, tolerance=0.0, only=("mask",))
def mask_formula(case: Case, result: LawResult) -> None:
    """The mask has one channel, or one for each channel of x."""
    x = case.normal(2, *SHAPE)
    for channels in (1, 3):
        mask = (case.normal(2, channels, *SHAPE[1:], stream="mask") > 0).double()
        cond = {"mask": mask, "other": mask}
        result.compare(case.component.at(cond)(x), x * mask, f"a mask of {channels} channels")
        result.holds(list(cond) == ["other"], f"{list(cond)} are left", "the mask is consumed, nothing else")


@law(
    "operator",
    statement="y is the mean of factor x factor pixels",
    source=DEFINITION,
    tolerance=1e-12,
    only=("downsample",),
)
def downsample_formula(case: Case, result: LawResult) -> None:
    """Pixel (i, j) of y is the mean over rows f i to f i + f - 1 and columns f j to f j + f - 1."""
    f, x = case.component.factor, case.normal(2, *SHAPE)
    y = case.component(x)
    for i, j in ((0, 0), (SHAPE[1] // f - 1, 1)):
        result.compare(y[:, :, i, j], x[:, :, f * i : f * i + f, f * j : f * j + f].mean((2, 3)), f"pixel {i}, {j}")


@law(
    "operator",
    statement="a cosine of k half-waves shrinks by exp(-(sigma pi k / n)^2 / 2)",
    source=DEFINITION,
    tolerance=1e-10,
    only=("blur",),
)
def blur_formula(case: Case, result: LawResult) -> None:
    """A Gaussian kernel has this response; a constant picture does not change."""
    at = torch.arange(SHAPE[2], dtype=torch.float64) + 0.5
    for k in (0, 1, 3):
        wave = torch.cos(math.pi * k * at / SHAPE[2]).expand(1, *SHAPE)
        response = math.exp(-0.5 * (case.component.sigma * math.pi * k / SHAPE[2]) ** 2)
        result.compare(case.component(wave), response * wave, f"{k} half-waves along a row")
        tall = wave.transpose(2, 3)
        result.compare(case.component(tall), response * tall, f"{k} half-waves along a column")


@law("operator", statement="y = .299 R + .587 G + .114 B", source="ITU-R BT.601", tolerance=1e-12, only=("grey",))
def grey_formula(case: Case, result: LawResult) -> None:
    """The weights sum to 1, so a grey picture keeps its value."""
    x = case.normal(2, *SHAPE)
    want = sum(w * x[:, i] for i, w in enumerate((0.299, 0.587, 0.114)))
    result.compare(case.component(x)[:, 0], torch.as_tensor(want), "the luminance")
    result.compare(sum(WEIGHTS), 1.0, "the sum of the weights")


@law(
    "operator",
    statement="coefficients of a block are the nearest multiples of the table",
    source="ITU-T T.81, table K.1",
    tolerance=1e-8,
    only=("jpeg",),
)
def jpeg_formula(case: Case, result: LawResult) -> None:
    """At quality 50 the steps are those of the table, at 25 twice them; in pixels of 0 to 255."""
    x = 0.4 * case.normal(2, *SHAPE)
    basis = cosine_basis(BLOCK, x)
    table = torch.tensor(TABLE, dtype=torch.float64).reshape(BLOCK, BLOCK)
    for quality, factor in ((50, 1.0), (25, 2.0)):
        y = replace(case.component, quality=quality)(x)
        step = factor * table / 127.5
        before, after = (basis @ one[:, :, :, 8:] @ basis.T / step for one in (x, y))
        result.compare(after, torch.round(before), f"the second block at quality {quality}")


@dataclass(frozen=True)
class Matrix(Operator):
    """Any linear operator on vectors x: (B, D), by its matrix (M, D)."""

    matrix: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix

    def solve(self, y: Tensor, a: Any, b: float) -> Tensor:
        gram = self.matrix @ self.matrix.T
        a = torch.as_tensor(a, dtype=y.dtype).reshape(-1, 1, 1)
        solved: Tensor = torch.linalg.solve(a * gram + b * torch.eye(len(gram), dtype=y.dtype), y[..., None])
        return solved[..., 0]


@dataclass(frozen=True)
class Problem:
    """A Gaussian N(mean, covariance), a measurement of it, and the exact denoiser of the posterior."""

    mean: Tensor
    covariance: Tensor
    matrix: Tensor
    y: Tensor
    noise: float

    @property
    def prior(self) -> GaussianOracle:
        return GaussianOracle(self.mean, self.covariance)

    @property
    def posterior(self) -> GaussianOracle:
        """N(m + K (y - A m), S - K A S), K = S A^T (A S A^T + noise^2)^-1."""
        A, S = self.matrix, self.covariance
        gain = S @ A.T @ torch.linalg.inv(A @ S @ A.T + self.noise**2 * torch.eye(len(A), dtype=A.dtype))
        spread = S - gain @ A @ S
        return GaussianOracle(self.mean + gain @ (self.y[0] - A @ self.mean), 0.5 * (spread + spread.T))

    def solved(self, method: Any, **options: Any) -> Denoiser:
        """Return the denoiser that a method makes of the prior, with the measurement."""
        made = replace(method, forward=Matrix(self.matrix), noise=self.noise, **options)
        return partial(made(self.prior), measurement=self.y)


def problem(unit: bool = False, noise: float = 0.5) -> Problem:
    """Return data in three dimensions, correlated or of unit covariance, and a measurement of two combinations."""
    mean = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    root = torch.tensor([[0.9, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.3, 0.2, 0.4]], dtype=torch.float64)
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.0, -0.4, 1.2]], dtype=torch.float64)
    covariance = torch.eye(3, dtype=torch.float64) if unit else root @ root.T
    return Problem(mean, covariance, matrix, torch.tensor([[0.9, -0.7]], dtype=torch.float64), noise)


def states(case: Case) -> Iterator[tuple[Level, Tensor]]:
    """Yield levels of every family, each with noisy examples."""
    for level in fixtures.probe_levels():
        yield level, level.add_noise(case.normal(4, 3, stream="x0"), case.normal(4, 3, stream="eps"))


def compare_posterior(case: Case, result: LawResult, given: Problem, title: str, **options: Any) -> None:
    """Compare x0 of a method with E[x0 | x, y], and alpha x0 + sigma eps with x.

    Args:
        case: the method.
        result: receives the errors.
        given: the data and the measurement.
        title: the name of the problem, for messages.
        **options: options of the method.
    """
    for level, x in states(case):
        got = given.solved(case.component, **options)(x, level)
        result.compare(got.x0, given.posterior(x, level).x0, f"{title}: x0 at {level}")
        compare_state(result, got, x, level)


def compare_state(result: LawResult, got: Estimate, x: Tensor, level: Level) -> None:
    """Compare alpha x0 + sigma eps of an estimate with the x that the method received.

    Args:
        result: receives the error.
        got: the estimate.
        x: the noisy examples.
        level: their level.
    """
    result.compare(level.add_noise(got.x0, got.eps), x, f"alpha x0 + sigma eps at {level}", float(x.abs().max()))


@law(
    "guidance",
    statement="x0 = E[x0 | x, y] for Gaussian data and a linear measurement",
    source="Boys et al. 2023 (arXiv:2310.06721), eq. 8",
    tolerance=1e-6,
    only=("pgdm",),
)
def exact_posterior(case: Case, result: LawResult) -> None:
    """With V = Cov[x0 | x] for every covariance, with V = r^2 I for unit covariance; with noise and without."""
    for noise in (0.5, 0.1):
        compare_posterior(case, result, problem(noise=noise), f"noise {noise}", covariance="exact")
        compare_posterior(case, result, problem(True, noise), f"unit covariance, noise {noise}", covariance="isotropic")
    compare_posterior(case, result, problem(True, 0.0), "without noise", covariance="isotropic")


@law(
    "guidance",
    statement="x0 moves by C A^T (y - A x0) / v, v = max(mean of (y - A x0)^2, noise^2)",
    source="Chung et al. 2023 (arXiv:2209.14687), eq. 16",
    tolerance=1e-8,
    only=("dps",),
)
def dps_formula(case: Case, result: LawResult) -> None:
    """C = Cov[x0 | x] of the prior, times the option scale."""
    for scale, noise in ((1.0, 0.0), (0.5, 3.0)):
        given = problem(noise=noise)
        for level, x in states(case):
            prior = given.prior(x, level)
            residual = given.y - prior.x0 @ given.matrix.T
            variance = residual.square().mean(1, keepdim=True).clamp(min=noise**2)
            C = given.prior.covariance(x, level)[0]
            want = prior.x0 + scale * (residual / variance) @ given.matrix @ C
            got = given.solved(case.component, scale=scale)(x, level)
            result.compare(got.x0, want, f"scale {scale}, noise {noise}: x0 at {level}")
            compare_state(result, got, x, level)


@law(
    "guidance",
    statement="A x0 = y, and x0 differs from the prior's only in the range of A^T",
    source="Wang et al. 2023 (arXiv:2212.00490), eq. 14 and 19",
    tolerance=1e-8,
    only=("ddnm",),
)
def ddnm_formula(case: Case, result: LawResult) -> None:
    """With noise, y - A x0 shrinks by 1 - min(1, sigma / (alpha noise))."""
    for noise in (0.0, 0.7):
        given = problem(noise=noise)
        null = torch.linalg.svd(given.matrix).Vh[2]
        for level, x in states(case):
            trust = min(1.0, float(level.ratio) / noise) if noise else 1.0
            got, before = given.solved(case.component)(x, level), given.prior(x, level).x0
            want = (1.0 - trust) * (given.y - before @ given.matrix.T)
            result.compare(given.y - got.x0 @ given.matrix.T, want, f"y - A x0 at {level}")
            result.compare(got.x0 @ null, before @ null, f"the rest of x0 at {level}")
            compare_state(result, got, x, level)


@law(
    "guidance",
    statement="the measurement is consumed, other conditions reach the network, levels may be tensors",
    source="the definition of Method",
    tolerance=1e-9,
    only=("dps", "pgdm", "ddnm"),
)
def consumes_measurement(case: Case, result: LawResult) -> None:
    """A network receives the conditions that it was trained with."""
    given, seen = problem(True), []

    def denoise(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        seen.append(sorted(cond))
        return given.prior(x, level).with_aux(variance_fraction=torch.sigmoid(x))

    method = replace(case.component, forward=Matrix(given.matrix), noise=given.noise)
    levels = fixtures.probe_levels()[:4]
    many = Level(
        *(
            torch.tensor([float(v) for v in row])
            for row in zip(*((one.alpha, one.sigma) for one in levels), strict=True)
        )
    )
    x = case.normal(4, 3)
    whole = method(denoise)(x, many, measurement=given.y, text=x)
    result.holds(all(names == ["text"] for names in seen), f"the network received {seen[0]}", "['text']")
    result.compare(whole.aux["variance_fraction"], torch.sigmoid(x), "aux")
    for i, level in enumerate(levels):
        alone = method(denoise)(x[i : i + 1], level, measurement=given.y, text=x[i : i + 1])
        result.compare(alone.x0[0], whole.x0[i], f"example {i} alone, at a level of floats", 1e3)


KNOWN = torch.tensor([[1.25, -0.5]], dtype=torch.float64)
MASK = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


def held(case: Case, levels: list[Level], seed: int = 0, mask: Tensor = MASK) -> Tensor:
    """Return samples of a Gaussian whose first pixel is known.

    Args:
        case: the sampler.
        levels: the levels to visit, noisiest first.
        seed: the seed of the noise.
        mask: 1 for known pixels: (1, 2).

    Returns:
        64 samples: (64, 2) float64.
    """

    def denoise(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        return fixtures.gaussian()(x, level).with_aux(known=KNOWN, mask=mask)

    noise = SampleNoise(seed, range(64))
    x = levels[0].add_noise(KNOWN.expand(64, 2), noise.initial((2,)).double())
    return sample(denoise, case.component, levels, x, noise=noise)


def angles(n: int, last: float = 0.0) -> list[Level]:
    """Return n + 1 levels, even in the angle from nearly pure noise."""
    each = [1.55 + (last - 1.55) * i / n for i in range(n + 1)]
    return [Level(math.cos(a), math.sin(a)) if a else Level(1.0, 0.0) for a in each]


@law(
    "sampler",
    statement="known pixels end at y to the bit, and hold y with noise of the level on the way",
    source="Lugmayr et al. 2022 (arXiv:2201.09865), eq. 8",
    tolerance=0.0,
    only=("blend", "repaint"),
)
def known_pixels(case: Case, result: LawResult) -> None:
    """The rest of the picture depends on y only through the network."""
    result.compare(held(case, angles(12))[:, 0], KNOWN[0, 0].expand(64), "known pixels at the clean level")
    level = Level(math.cos(0.4), math.sin(0.4))
    eps = (held(case, angles(12, last=0.4))[:, 0] - level.alpha * KNOWN[0, 0]) / level.sigma
    spread = float(eps.square().mean())
    result.holds(0.6 < spread < 1.5, f"noise of variance {spread:.3g} at the angle 0.4", "about 1")


@law(
    "sampler",
    statement="the known pixels keep the noise of the first state",
    source="the definition of blend",
    tolerance=1e-9,
    only=("blend",),
)
def straight_path(case: Case, result: LawResult) -> None:
    """x there is alpha y + sigma e at every level, with e of the start."""
    eps = SampleNoise(0, range(64)).initial((2,)).double()[:, 0]
    for last in (1.0, 0.4, 0.05):
        got = held(case, angles(9, last))[:, 0]
        result.compare(got, math.cos(last) * KNOWN[0, 0] + math.sin(last) * eps, f"known pixels at the angle {last}")
    plain = case.component.inner
    noise = SampleNoise(0, range(64))
    x = angles(12)[0].add_noise(KNOWN.expand(64, 2), noise.initial((2,)).double())
    want = sample(fixtures.gaussian(), plain, angles(12), x, noise=noise)
    result.compare(held(case, angles(12), mask=torch.zeros_like(MASK)), want, "a mask of zeros: the inner sampler")


@law(
    "sampler",
    statement="more resamples bring the hole nearer to p(hole | known)",
    source="Lugmayr et al. 2022 (arXiv:2201.09865), sec. 4.2",
    tolerance=0.15,
    only=("repaint",),
)
def resampling(case: Case, result: LawResult) -> None:
    """Of correlated Gaussian data with one known pixel, the mean of the other is m2 + S21 / S11 (y - m1)."""
    case = replace(case, component=replace(case.component, resamples=10))
    S, m = fixtures.COVARIANCE, fixtures.MEAN
    want = float(m[1] + S[1, 0] / S[0, 0] * (KNOWN[0, 0] - m[0]))
    result.compare(held(case, angles(40))[:, 1].mean(), want, "mean of the hole", 1.0)
