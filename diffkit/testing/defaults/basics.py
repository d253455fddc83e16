"""Laws of the default grids, times, guidance, codecs, augmentations and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from diffkit.data import DataSpec
from diffkit.estimate import Estimate
from diffkit.level import Level
from diffkit.network import Shape
from diffkit.oracles import GaussianOracle
from diffkit.testing import Case, LawResult, NotApplicable, fixtures, law
from diffkit.testing.by_kind.codec import images
from diffkit.testing.by_kind.data import augmentation_inputs
from diffkit.testing.by_kind.grid import COUNTS
from diffkit.testing.by_kind.guidance import LABEL, inputs
from diffkit.testing.by_kind.metric import COUNT, evaluation_of, first_value
from diffkit.testing.by_kind.times import SCHEDULES, evenly_spread, fresh


def compare_whole_times(case: Case, result: LawResult, point: Callable[[int, int, int], Fraction]) -> None:
    """Compare a grid on 10 and 1000 steps with a formula in exact fractions, rounded and made distinct by its options.

    Args:
        case: the grid.
        result: receives the errors.
        point: (T, n, j) -> the time of point j of n.
    """
    rounding, least, half = case.component.rounding, 1 if case.component.ends_clean else 2, Fraction(1, 2)
    for T, n in ((T, n) for T in (10, 1000) for n in COUNTS if n <= T + 1 - least):
        want: list[float] = [float(point(T, n, j)) for j in range(n)]
        if rounding != "none":
            exact = [point(T, n, j) for j in range(n)]
            down = [rounding == "half-even" and (t + half) % 2 == 0 for t in exact]  # t - 1 is an even number and 1/2
            whole = [math.ceil(t - half) if one else math.floor(t + half) for t, one in zip(exact, down, strict=True)]
            want = [float(t) for t in distinct_times(whole, T, least)]
        got = case.component.times(fixtures.discrete(T), n)
        bad = [j for j in range(n) if j >= len(got) or abs(got[j] - want[j]) > 1e-9]
        at = bad[0] if bad else 0
        result.note(float(len(bad)), f"n = {n} of {T}: t_{at} = {got[at] if at < len(got) else None}", f"{want[at]}")


def distinct_times(times: list[int], steps: int, least: int) -> list[int]:
    """Return strictly falling whole times from `least` on: lowered from the noisy end, then raised from the clean end.

    Args:
        times: whole times, the noisiest first.
        steps: the largest time.
        least: the smallest time.

    Returns:
        As many times.
    """
    lowered: list[int] = []
    for t in times:
        lowered.append(min(t, steps if not lowered else lowered[-1] - 1))
    raised: list[int] = []
    for t in reversed(lowered):
        raised.append(max(t, least if not raised else raised[-1] + 1))
    return raised[::-1]


@law(
    "grid",
    statement="t_j = T - (T - 1) j / (n - 1), from T to 1; with intervals n+1, T - (T - 1) j / n",
    source="Ho et al. 2020 (arXiv:2006.11239)",
    tolerance=0.0,
    only=("linspace",),
)
def linspace_points(case: Case, result: LawResult) -> None:
    """Both ends are included; on a continuous schedule the times are equally spaced."""
    more = case.component.intervals == "n+1"
    compare_whole_times(case, result, lambda T, n, j: T - Fraction((T - 1) * j, max(1, n if more else n - 1)))
    if case.component.discrete_only:
        return
    times = case.component.times(fixtures.TRIG, 4)
    result.holds(
        all(abs(a - b) < 1e-12 for a, b in zip(times, (1.0, 0.75, 0.5, 0.25), strict=True)),
        f"4 steps on t in [0, 1]: {times}",
        "1, 0.75, 0.5, 0.25",
    )
    last, end = case.component.times(fixtures.EXPLODING, 4)[-1], 0.002 + 79.998 / 4 if more else 0.002
    result.holds(abs(last - end) < 1e-9, f"4 steps on [0.002, 80] end at {last}", f"{end}, which still holds noise")


@law(
    "grid",
    statement="t_j = T (1 - j / n)",
    source="Lin et al. 2023 (arXiv:2305.08891), sec. 3.3",
    tolerance=0.0,
    only=("trailing",),
)
def trailing_points(case: Case, result: LawResult) -> None:
    """The times are equally spaced, counted from the noisy end."""
    compare_whole_times(case, result, lambda T, n, j: Fraction(T * (n - j), n))


@law(
    "grid",
    statement="t_j = (m - 1 - j) floor(T / m) + 1 + offset, with m = n or n + 1",
    source="Song et al. 2021 (arXiv:2010.02502), code",
    tolerance=0.0,
    only=("leading",),
)
def leading_points(case: Case, result: LawResult) -> None:
    """The times are multiples of a whole stride, plus 1 and the offset; the noisy end is not included."""
    more, first = case.component.intervals == "n+1", 1 + case.component.offset
    compare_whole_times(case, result, lambda T, n, j: Fraction((n + more - 1 - j) * (T // (n + more)) + first))


@law(
    "grid",
    statement="t_j = 1 + (T - 1) ((n - 1 - j) / (n - 1))^2",
    source="Song et al. 2021 (arXiv:2010.02502), app. D.2",
    tolerance=0.0,
    only=("quadratic",),
)
def quadratic_points(case: Case, result: LawResult) -> None:
    """sqrt(t - 1) is equally spaced."""
    if case.options:
        raise NotApplicable("tested with default options only")
    compare_whole_times(
        case, result, lambda T, n, j: 1 + (T - 1) * (Fraction(n - 1 - j, n - 1) ** 2 if n > 1 else Fraction(1))
    )


@law(
    "times",
    statement="t / T has the distribution of a uniform number",
    source="Ho et al. 2020 (arXiv:2006.11239), Algorithm 1",
    tolerance=2e-3,
    only=("uniform", "stratified"),
)
def uniform_law(case: Case, result: LawResult) -> None:
    """Each of the T steps has the same probability."""
    uniform = torch.rand(4096, generator=case.generator("u")) if case.name == "stratified" else evenly_spread(4096 * 7)
    for title in ("short", "curve"):
        schedule = SCHEDULES[title]
        t = fresh(case).draw(uniform, schedule).double()
        if schedule.steps is None:
            for power in (1, 2, 3):
                result.compare(float((t**power).mean()), 1.0 / (power + 1), f"{title}: E[t^{power}]")
            continue
        for k in range(1, schedule.steps + 1):
            share = float((t == k).double().mean())
            result.compare(share, 1.0 / schedule.steps, f"{title}: share of t = {k}")


@law(
    "times",
    statement="a batch of B contains one time in each of B equal parts of the schedule",
    source="Kingma et al. 2021 (arXiv:2107.00630), app. I.1",
    tolerance=0.0,
    only=("stratified",),
)
def strata(case: Case, result: LawResult) -> None:
    """The variance is lower than that of independent times, and the mean is the same."""
    for B in (1, 2, 5, 64):
        t = fresh(case).draw(torch.rand(B, generator=case.generator("u", B)), fixtures.TRIG)
        parts = torch.sort(torch.clamp(((1.0 - t) * B).floor(), 0, B - 1)).values
        hit = torch.equal(parts, torch.arange(B, dtype=parts.dtype))
        result.holds(hit, f"B = {B}: parts {parts.tolist()[:8]}", "each once")


@law(
    "guidance",
    statement="the guided score is (1 - scale) score + scale score(label)",
    source="Ho & Salimans 2022 (arXiv:2207.12598), eq. 6",
    tolerance=1e-9,
    identities="F5",
    only=("cfg",),
)
def gaussian_closed_form(case: Case, result: LawResult) -> None:
    """For Gaussians the guided score is that of N(Lam^-1 (...), Lam^-1), Lam = scale V_c^-1 + (1 - scale) V_u^-1."""
    guidance, source = case.component, fixtures.classes()
    scale = guidance.scale
    for level, x in inputs(case):
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
            result.compare(estimate.score[i], score, f"score of example {i} at {level}, scale {scale}")
            result.compare(estimate.x0[i], (x[i] + s * s * score) / a, f"x0 of example {i} at {level}", 1.0 / a)


@law(
    "guidance",
    statement="scale 1 calls the denoiser once and changes nothing; examples without a label are not guided",
    source="identities K, guidance: scale s, not w = s - 1",
    tolerance=1e-12,
    only=("cfg",),
)
def neutral_scale(case: Case, result: LawResult) -> None:
    """In this library scale 1 means no guidance."""
    guidance, source = case.component, fixtures.classes()
    plain = type(guidance)(Shape(2, 2, (), 4), 1.0)
    calls = 0

    def counting(x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        nonlocal calls
        calls += 1
        return source(x, level, **cond)

    for level, x in inputs(case):
        calls = 0
        result.compare(plain(counting)(x, level, label=LABEL).x0, source(x, level, label=LABEL).x0, f"x0 at {level}")
        result.holds(calls == 1, f"scale 1: {calls} calls", "1")
        result.compare(guidance(source)(x, level).x0, source(x, level).x0, f"x0 without labels at {level}")
        null = torch.full_like(LABEL, 4)
        result.compare(guidance(source)(x, level, label=null).x0, source(x, level).x0, f"x0 of null labels at {level}")


@law(
    "guidance",
    statement="x0 is clamped to [low, high]",
    source="Ho et al. 2020 (arXiv:2006.11239), code",
    tolerance=1e-12,
    only=("clip",),
)
def clip_formula(case: Case, result: LawResult) -> None:
    """Each element is clamped independently."""
    low, high, truth = case.component.low, case.component.high, fixtures.classes()
    for level, x in inputs(case):
        got, plain = (denoise(x, level, label=LABEL) for denoise in (case.component(truth), truth))
        result.compare(got.x0, torch.clamp(plain.x0, low, high), f"x0 at {level}")


@law(
    "guidance",
    statement="x0 is clamped to [-s, s] and divided by s, s = max(1, quantile of |x0| in the example)",
    source="Saharia et al. 2022 (arXiv:2205.11487), sec. 2.3",
    tolerance=1e-6,
    only=("threshold",),
)
def threshold_formula(case: Case, result: LawResult) -> None:
    """Examples within [-1, 1] are not changed; the quantile is interpolated linearly."""
    q = case.component.quantile
    wide = torch.linspace(-3.0, 2.0, 40, dtype=torch.float64).reshape(2, 20)
    level = Level(0.8, 0.6)
    for size in (0.1, 1.0):

        def constant(x: Tensor, at: Level, /, *, size: float = size, **cond: Tensor) -> Estimate:
            return Estimate.from_x0(x, at, size * wide)

        got = case.component(constant)(torch.zeros_like(wide), level).x0
        for i in range(2):
            ranked = sorted((size * wide[i]).abs().tolist())
            place = q * (len(ranked) - 1)
            low = int(place)
            s = ranked[low] + (place - low) * (ranked[min(low + 1, len(ranked) - 1)] - ranked[low])
            s = max(1.0, s)
            result.compare(got[i], torch.clamp(size * wide[i], -s, s) / s, f"x0 of size {size}")


@law(
    "codec",
    statement="z = (x - shift) scale",
    source="Rombach et al. 2022 (arXiv:2112.10752), app. G",
    tolerance=1e-5,
    only=("affine",),
)
def affine_formula(case: Case, result: LawResult) -> None:
    """The shift is subtracted first."""
    codec = case.component
    if isinstance(codec.shift, tuple) or isinstance(codec.scale, tuple):
        raise NotApplicable("shift and scale have one value per channel")
    made = type(codec)(0.5, 4.0)
    x = images(case)
    result.compare(made.encode(x), (x - 0.5) * 4.0, "shift 0.5, scale 4")
    result.compare(made.decode(x), x / 4.0 + 0.5, "decoding with shift 0.5, scale 4")


@law(
    "augmentation",
    statement="an example is mirrored along its last axis if its number is below the probability, else unchanged",
    source="Ho et al. 2020 (arXiv:2006.11239), app. B",
    tolerance=0.0,
    only=("flip",),
)
def flip_formula(case: Case, result: LawResult) -> None:
    """Left and right are exchanged, top and bottom are not."""
    x, _, cond = augmentation_inputs(case)
    p = case.component.probability
    for u in (0.0, p - 1e-3, p + 1e-3, 0.999):
        if not 0.0 <= u < 1.0:
            continue
        y, _ = case.component(x, torch.full((8, 1), u), cond)
        result.compare(y, torch.flip(x, (3,)) if u < p else x, f"u = {u:.4g}, probability {p}")


@law(
    "metric",
    statement="the distance of the training set to itself is 0",
    source="the definition of a distance",
    tolerance=1e-3,
    only=("frechet", "sliced-wasserstein", "mmd"),
)
def zero_at_identity(case: Case, result: LawResult) -> None:
    """The distance of a set to itself is 0 for all random projections."""
    evaluation = evaluation_of(case)
    value = first_value(
        case.component(replace(evaluation, samples=evaluation.train, sample_labels=evaluation.train_labels))
    )
    result.note(max(0.0, value), f"{value:.6g}", "0")


@law(
    "metric",
    statement="the distance of Gaussians with common axes is |m - m'|^2 + sum (s - s')^2",
    source="Dowson & Landau 1982, eq. 4",
    tolerance=1e-4,
    only=("frechet",),
)
def frechet_gaussian(case: Case, result: LawResult) -> None:
    """The samples have exactly these moments, so there is no sampling error."""
    evaluation = evaluation_of(case)
    z = case.normal(COUNT, 2, stream="z")
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    for m, s in ((torch.zeros(2), torch.tensor([1.0, 2.0])), (torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))):
        train, samples = (z * torch.tensor([1.0, 2.0])).float(), (m + z * s).float()
        want = float(m.square().sum() + (s - torch.tensor([1.0, 2.0])).square().sum())
        got = first_value(case.component(replace(evaluation, spec=DataSpec(2), train=train, samples=samples)))
        result.compare(got, want, f"mean {m.tolist()}, deviations {s.tolist()}", 1.0)


@law(
    "metric",
    statement="a shift by c changes the distance by that of one point moved by c",
    source="Bonneel et al. 2015, eq. 5",
    tolerance=0.1,
    only=("sliced-wasserstein",),
)
def wasserstein_shift(case: Case, result: LawResult) -> None:
    """The distance is (mean over directions u of |u . c|^p)^(1/p). For p = 2 in D dimensions this is |c| / sqrt(D)."""
    evaluation = evaluation_of(case)
    c = torch.tensor([3.0, 0.0])
    got = first_value(
        case.component(replace(evaluation, samples=evaluation.train + c, sample_labels=evaluation.train_labels))
    )
    near = min(abs(got / 3.0 * 2.0**0.5 - 1.0), abs(got / 9.0 * 2.0 - 1.0))
    result.note(near, f"{got:.5g} for a shift by 3 in the plane", "3 / sqrt 2, or its square")


def compare_factors(case: Case, result: LawResult, formula: Callable[[float, int, int], float]) -> None:
    """Compare a learning-rate schedule with a formula for several numbers of steps and of warm-up updates.

    Args:
        case: the schedule.
        result: receives the errors.
        formula: (u, n, steps) -> the factor of update n >= warmup; u goes from 0 at n = warmup to 1 at n = steps.
    """
    for steps, warmup in ((1, 0), (10, 0), (1000, 0), (1000, 100)):
        schedule = replace(case.component, warmup=warmup)
        for n in sorted({1, 2, steps // 3, steps // 2, steps - 1, steps} & set(range(max(1, warmup), steps + 1))):
            u = min(1.0, (n - warmup) / max(1, steps - warmup))
            want = formula(u, n, steps)
            result.compare(schedule(n - 1, steps), want, f"factor of update {n} of {steps}, warmup {warmup}")


@law("lr-schedule", statement="f = 1 after the warm-up", source="the definition", tolerance=0.0, only=("constant",))
def constant_rate(case: Case, result: LawResult) -> None:
    """Each update has the full learning rate."""
    compare_factors(case, result, lambda u, n, steps: 1.0)


@law(
    "lr-schedule",
    statement="f falls linearly from 1 at the end of the warm-up to `end` at the last update",
    source="the definition",
    tolerance=1e-12,
    only=("linear",),
)
def linear_rate(case: Case, result: LawResult) -> None:
    """f = 1 - (1 - end) u."""
    end = case.component.end
    compare_factors(case, result, lambda u, n, steps: 1.0 - (1.0 - end) * u)


@law(
    "lr-schedule",
    statement="f = end + (1 - end) cos^2(pi u / 2), u from 0 at the end of the warm-up to 1 at the last update",
    source="Loshchilov & Hutter 2017 (arXiv:1608.03983), eq. 5",
    tolerance=1e-12,
    only=("cosine",),
)
def cosine_rate(case: Case, result: LawResult) -> None:
    """The formula is rewritten with (1 + cos(pi u)) / 2 = cos^2(pi u / 2)."""
    end = case.component.end
    compare_factors(case, result, lambda u, n, steps: end + (1.0 - end) * math.cos(math.pi * u / 2.0) ** 2)


@law(
    "lr-schedule",
    statement="f = 1, then linear to `end` over the last share `decay` of all updates",
    source="Hu et al. 2024 (arXiv:2404.06395), sec. 4",
    tolerance=1e-12,
    only=("wsd",),
)
def wsd_rate(case: Case, result: LawResult) -> None:
    """The decay starts decay * steps updates before the end."""
    end, decay = case.component.end, case.component.decay
    compare_factors(case, result, lambda u, n, steps: end + (1.0 - end) * min(1.0, (steps - n) / (decay * steps)))


@law(
    "lr-schedule",
    statement="f = sqrt(r / n) for n > r, r the option `reference` or the warm-up",
    source="Vaswani et al. 2017 (arXiv:1706.03762), eq. 3",
    tolerance=1e-12,
    only=("inverse-sqrt",),
)
def inverse_sqrt_rate(case: Case, result: LawResult) -> None:
    """Updates up to `reference` have the factor 1."""
    for steps, warmup, reference in ((1000, 100, None), (1000, 0, 50), (1000, 10, 50)):
        schedule = replace(case.component, warmup=warmup, reference=reference)
        for n in (warmup + 1, 333, 1000):
            r = reference or warmup
            want = min(1.0, (r / n) ** 0.5)
            result.compare(schedule(n - 1, steps), want, f"factor of update {n}, reference {r}")
