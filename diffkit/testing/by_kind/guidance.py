"""Laws of guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.estimate import Estimate
from diffkit.level import Level
from diffkit.network import Shape

from ...oracles.gaussian import GaussianOracle
from .. import families
from ..law_registry import Inapplicable, Worst, law
from ..subject import Subject


def denoiser() -> families.ByLabel:
    """Four labels, each a Gaussian; those without one a wider Gaussian."""
    means = ((0.9, 0.0), (-0.6, 0.5), (0.0, -0.8), (1.5, 1.2))
    each = [GaussianOracle(torch.tensor(mean, dtype=torch.float64), 0.2 + 0.1 * i) for i, mean in enumerate(means)]
    return families.ByLabel([*each, GaussianOracle(torch.tensor([0.2, 0.2], dtype=torch.float64), 0.9)])


LABEL = torch.tensor([0, 3, 1, 2, 0])


def cases(subject: Subject) -> list[tuple[Level, Tensor]]:
    """Levels of every family, with x of the size that they have."""
    found = []
    for level in families.probe_levels():
        x0, eps = subject.normal(5, 2, stream="x0"), subject.normal(5, 2, stream="eps")
        found.append((level, level.add_noise(x0, eps)))
    return found


@law(
    "guidance",
    statement="the guided estimate splits the same x: alpha x0 + sigma eps = x, at the same level",
    source="design.md, section 1; identities K, clipping",
    tolerance=1e-9,
)
def consistent(subject: Subject, worst: Worst) -> None:
    """eps follows whenever x0 is changed; a sampler may use either."""
    for level, x in cases(subject):
        estimate = subject.component(denoiser())(x, level, label=LABEL)
        size = max(1.0, float(level.alpha) * float(estimate.x0.abs().max()))
        worst.compare(level.add_noise(estimate.x0, estimate.eps), x, f"alpha x0 + sigma eps at {level}", size)
        worst.holds(estimate.level == level, f"level {estimate.level}", f"{level}")
        worst.holds(estimate.x0.dtype == x.dtype, f"{estimate.x0.dtype}", f"{x.dtype}")


@law(
    "guidance",
    statement="the estimate of an example depends on that example only, and x is left as it was",
    source="tests/pains.md, 16",
    tolerance=1e-9,
)
def each_alone(subject: Subject, worst: Worst) -> None:
    """No statistics over the batch."""
    for level, x in cases(subject)[:4]:
        kept = x.clone()
        guided = subject.component(denoiser())
        whole = guided(x, level, label=LABEL)
        for i in range(len(x)):
            alone = guided(x[i : i + 1], level, label=LABEL[i : i + 1])
            worst.compare(alone.x0[0], whole.x0[i], f"x0 of example {i} alone at {level}")
            worst.compare(alone.eps[0], whole.eps[i], f"eps of example {i} alone at {level}")
        worst.compare(x, kept, "x afterwards")


@law(
    "guidance",
    statement="it composes: a guided denoiser can be guided again, and asked without a label",
    source="the definition of Guidance",
    tolerance=0.0,
)
def composes(subject: Subject, worst: Worst) -> None:
    """Denoiser to denoiser, so any number of them, in a chain."""
    level, x = cases(subject)[1]
    twice = subject.component(subject.component(denoiser()))
    for cond in ({}, {"label": LABEL}):
        estimate = twice(x, level, **cond)
        fine = estimate.x0.shape == x.shape and bool(torch.isfinite(estimate.x0).all())
        worst.holds(fine, f"guided twice, with {sorted(cond) or 'no label'}", "a finite estimate")


@law(
    "guidance",
    statement="an output of a network, not yet decoded, is guided as its x0 and eps are",
    source="design.md, section 1",
    tolerance=1e-9,
)
def undecoded(subject: Subject, worst: Worst) -> None:
    """Estimates of one x may be mixed before x0 and eps are computed."""
    plain = denoiser()

    def spoken(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        rows = (1.0 / float(level.alpha), -float(level.sigma) / float(level.alpha), 0.0, 1.0)
        return Estimate.decoded(level, x, plain(x, level, **cond).eps, rows)

    for level, x in cases(subject)[:4]:
        want = subject.component(plain)(x, level, label=LABEL)
        with torch.no_grad():  # else it is decoded at once
            got = subject.component(spoken)(x, level, label=LABEL)
        worst.compare(got.x0, want.x0, f"x0 at {level}", max(1.0, 1.0 / float(level.alpha)))
        worst.compare(got.eps, want.eps, f"eps at {level}", max(1.0, float(want.eps.abs().max())))


@law(
    "guidance",
    statement="levels may be tensors, one for each example",
    source="design.md, section 1",
    tolerance=1e-9,
)
def tensor_levels(subject: Subject, worst: Worst) -> None:
    """The same estimate as with floats."""
    for level, x in cases(subject)[:4]:
        many = Level(*(torch.full((5,), float(c), dtype=torch.float64) for c in (level.alpha, level.sigma)))
        want = subject.component(denoiser())(x, level, label=LABEL)
        got = subject.component(denoiser())(x, many, label=LABEL)
        worst.compare(got.x0, want.x0, f"x0 at {level}")
        worst.compare(got.eps, want.eps, f"eps at {level}", max(1.0, float(want.eps.abs().max())))


@law(
    "guidance",
    statement="the guided score is (1 - scale) score + scale score(label); scale 1 is the conditional one",
    source="Ho & Salimans 2022 (arXiv:2207.12598), eq. 6",
    tolerance=1e-9,
    identities="F5",
    only=("cfg",),
)
def gaussian_closed_form(subject: Subject, worst: Worst) -> None:
    """For Gaussians that is the score of N(Lam^-1 (...), Lam^-1), Lam = scale V_c^-1 + (1 - scale) V_u^-1."""
    guidance, source = subject.component, denoiser()
    scale = guidance.scale
    for level, x in cases(subject):
        estimate = guidance(source)(x, level, label=LABEL)
        a, s = float(level.alpha), float(level.sigma)
        oracles = [source.denoisers[int(k)] for k in LABEL]
        null = source.denoisers[-1]
        for i, oracle in enumerate(oracles):
            assert isinstance(oracle, GaussianOracle)
            assert isinstance(null, GaussianOracle)
            v_c, v_u = (a * a * float(o.variances[0]) + s * s for o in (oracle, null))
            lam = scale / v_c + (1.0 - scale) / v_u
            target = scale / v_c * a * oracle.mean + (1.0 - scale) / v_u * a * null.mean
            score = -(lam * x[i] - target)
            worst.compare(estimate.score[i], score, f"score of example {i} at {level}, scale {scale}")
            worst.compare(estimate.x0[i], (x[i] + s * s * score) / a, f"x0 of example {i} at {level}", 1.0 / a)


@law(
    "guidance",
    statement="scale = 1 asks the denoiser once and changes nothing; examples without a label are not guided",
    source="identities K, guidance: scale s, not w = s - 1",
    tolerance=1e-12,
    only=("cfg",),
)
def neutral_scale(subject: Subject, worst: Worst) -> None:
    """The convention of this code base: 1 is no guidance."""
    guidance, source = subject.component, denoiser()
    plain = type(guidance)(Shape(2, 2, (), 4), 1.0)
    calls = 0

    def counting(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        nonlocal calls
        calls += 1
        return source(x, level, **cond)

    for level, x in cases(subject):
        calls = 0
        worst.compare(plain(counting)(x, level, label=LABEL).x0, source(x, level, label=LABEL).x0, f"x0 at {level}")
        worst.holds(calls == 1, f"scale 1: {calls} calls", "1")
        worst.compare(guidance(source)(x, level).x0, source(x, level).x0, f"x0 without labels at {level}")
        null = torch.full_like(LABEL, 4)
        worst.compare(guidance(source)(x, level, label=null).x0, source(x, level).x0, f"x0 of null labels at {level}")


@law(
    "guidance",
    statement="x0 is clamped to [low, high], and unchanged inside",
    source="Ho et al. 2020 (arXiv:2006.11239), code",
    tolerance=1e-12,
    only=("clip",),
)
def clip_formula(subject: Subject, worst: Worst) -> None:
    """Element by element."""
    low, high = subject.component.low, subject.component.high
    for level, x in cases(subject):
        got, plain = subject.component(denoiser())(x, level, label=LABEL), denoiser()(x, level, label=LABEL)
        worst.compare(got.x0, torch.clamp(plain.x0, low, high), f"x0 at {level}")


@law(
    "guidance",
    statement="x0 is clamped to [-s, s] and divided by s, s = max(1, quantile of |x0| in the example)",
    source="Saharia et al. 2022 (arXiv:2205.11487), sec. 2.3",
    tolerance=1e-6,
    only=("threshold",),
)
def threshold_formula(subject: Subject, worst: Worst) -> None:
    """Examples that stay within [-1, 1] are left alone; the quantile is interpolated linearly."""
    q = subject.component.quantile
    wide = torch.linspace(-3.0, 2.0, 40, dtype=torch.float64).reshape(2, 20)
    level = Level(0.8, 0.6)
    for size in (0.1, 1.0):

        def say(x: Tensor, at: Level, /, *, size: float = size, **cond: Tensor) -> Estimate:
            return Estimate.from_x0(x, at, size * wide)

        got = subject.component(say)(torch.zeros_like(wide), level).x0
        for i in range(2):
            ranked = sorted((size * wide[i]).abs().tolist())
            place = q * (len(ranked) - 1)
            low = int(place)
            s = ranked[low] + (place - low) * (ranked[min(low + 1, len(ranked) - 1)] - ranked[low])
            s = max(1.0, s)
            worst.compare(got[i], torch.clamp(size * wide[i], -s, s) / s, f"x0 of size {size}")
    if not worst.checks:
        raise Inapplicable("no case")


@law(
    "guidance",
    statement="x0 has phi times the deviation of what is not guided, and 1 - phi times its own",
    source="Lin et al. 2024 (arXiv:2305.08891), eq. 15, 16",
    tolerance=1e-9,
    only=("rescale",),
)
def rescale_formula(subject: Subject, worst: Worst) -> None:
    """Deviations over the dimensions of an example; the direction is that of the guided estimate."""
    guidance, source = subject.component, denoiser()
    for level, x in cases(subject):
        got = guidance(source)(x, level, label=LABEL).x0
        plain, guided = source(x, level, label=LABEL).x0, guidance.inner(source)(x, level, label=LABEL).x0
        ratio = plain.std(1, correction=0) / guided.std(1, correction=0)
        want = (guidance.phi * ratio + 1.0 - guidance.phi)[:, None] * guided
        worst.compare(got, want, f"x0 at {level}")
