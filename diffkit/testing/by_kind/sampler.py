"""Laws of every sampler: its declarations, its last step, its noise, and that it stores nothing between calls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffkit.data import Data
from diffkit.denoiser import Denoiser
from diffkit.estimate import Estimate
from diffkit.level import Level
from diffkit.noise import SampleNoise
from diffkit.sampler import Sampler, StepInfo, sample

from ...oracles.base import Oracle
from ...oracles.gaussian import GaussianOracle
from .. import fixtures
from ..case import Case
from ..law_registry import LawResult, NotApplicable, law
from ..options import options_used
from ..reference import SOURCE, STATEMENT, evaluate, for_variants, names_of, reference_of

POINT = torch.tensor([0.7, -0.4], dtype=torch.float64)


def walk(case: Case, n: int, *, clean: bool = True) -> list[Level]:
    """Return levels that a sampler supports.

    Args:
        case: the sampler.
        n: the number of steps.
        clean: whether the last level is clean data.

    Returns:
        n + 1 unevenly spaced levels, of a discrete schedule if the sampler supports nothing else.
    """
    if not case.component.discrete_only:
        return fixtures.path(n, clean=clean)
    schedule = fixtures.discrete()
    times = [1.0 + 899.0 * ((n - i) / n) ** 1.5 for i in range(n if clean else n + 1)]
    return [*(schedule.level(float(round(t))) for t in times), *([schedule.clean] if clean else [])]


def on(sampler: Sampler[Any], oracle: Oracle, seed: int = 0) -> Sampler[Any]:
    """Return a sampler that learns from samples of an oracle, if it or an inner sampler takes `data`.

    Args:
        sampler: the sampler.
        oracle: the distribution of the data.
        seed: the seed of the samples.

    Returns:
        A copy with these data; the sampler itself if it takes none.
    """
    if not dataclasses.is_dataclass(sampler):
        return sampler
    changes: dict[str, Any] = {}
    for one in dataclasses.fields(sampler):
        value = getattr(sampler, one.name)
        if isinstance(value, Data):
            changes[one.name] = fixtures.OracleData(oracle, seed=seed)
        elif isinstance(value, Sampler) and (inner := on(value, oracle, seed)) is not value:
            changes[one.name] = inner
    return dataclasses.replace(sampler, **changes) if changes else sampler


def wide_path() -> list[Level]:
    """Return 18 levels from sigma = 80 to 0.002 with alpha = 1, even in sigma^(1/7), then clean data.

    A method with an interval of levels, such as Restart, meets both of its ends here.
    """
    first, last = 80.0 ** (1.0 / 7.0), 0.002 ** (1.0 / 7.0)
    return [*(Level(1.0, (first + (last - first) * i / 17.0) ** 7) for i in range(18)), Level(1.0, 0.0)]


class Recorded:
    """A noise source whose k-th call returns the k-th of some fixed tensors, transformed by `change`."""

    def __init__(self, seed: int = 0, change: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        self.seed, self.change, self.calls = seed, change, 0

    def __call__(self, x: Tensor) -> Tensor:
        source = torch.Generator().manual_seed(1000 * self.seed + self.calls)
        self.calls += 1
        z = torch.randn(x.shape, generator=source, dtype=torch.float64)
        return self.change(z).to(x.dtype)


@law(
    "sampler",
    statement="n steps call the denoiser nfe(n) times",
    source="the definition of Sampler.nfe",
    tolerance=0.0,
)
def evaluations(case: Case, result: LawResult) -> None:
    """nfe states the cost of a sampler; a step may need several evaluations."""
    sampler: Sampler[Any] = case.component
    for n in (1, 2, 3, 5, 10):
        declared = sampler.nfe(n)
        if declared is None:
            continue
        steps: list[StepInfo] = []
        denoise = fixtures.with_aux(sampler, fixtures.gaussian())
        sample(denoise, sampler, walk(case, n), case.normal(2, 2), noise=Recorded(), on_step=steps.append)
        calls = steps[-1].nfe
        result.note(float(abs(calls - declared)), f"{n} steps: {calls} evaluations", f"{declared}")
    if not result.checks:
        raise NotApplicable("nfe is None: the number of evaluations depends on the data")


@law(
    "sampler",
    statement="1, 2 and 3 steps, to clean data or to a level with noise, give finite samples of the shape of x",
    source="tests/pains.md, 19",
    tolerance=0.0,
)
def edges(case: Case, result: LawResult) -> None:
    """The first steps have no history; in the last step h is infinite."""
    sampler: Sampler[Any] = case.component
    for clean in (True, False):
        for n in (1, 2, 3):
            for shape in ((1, 2), (3, 2)):
                levels = walk(case, n, clean=clean)
                denoise = fixtures.with_aux(sampler, fixtures.gaussian())
                y = sample(denoise, sampler, levels, case.normal(*shape), noise=Recorded())
                fine = y.shape == shape and bool(torch.isfinite(y).all())
                result.holds(fine, f"n = {n}, to sigma = {levels[-1].sigma}: {y.flatten()[:2].tolist()}", "finite")


@law(
    "sampler",
    statement="if the data is one point, every sample on clean data is that point",
    source="identities F2",
    tolerance=1e-9,
    identities="F2",
)
def point_mass(case: Case, result: LawResult) -> None:
    """x0* does not depend on x, and the last step returns it."""
    oracle = GaussianOracle(POINT, 0.0)
    sampler = on(case.component, oracle)
    for n in (1, 2, 3, 7, 20):
        x = case.normal(3, 2)
        y = sample(fixtures.with_aux(sampler, oracle), sampler, walk(case, n), x, noise=Recorded())
        result.compare(y, POINT.expand(3, 2), f"{n} steps")


@law(
    "sampler",
    statement="the step to clean data adds no noise",
    source="Ho et al. 2020 (arXiv:2006.11239), Algorithm 2; identities K",
    tolerance=0.0,
    identities="D6",
)
def quiet_end(case: Case, result: LawResult) -> None:
    """The sample does not depend on noise drawn in the last step."""
    sampler: Sampler[Any] = case.component
    for n in (1, 2, 4):
        levels = walk(case, n)
        outcomes = []
        for last in (1.0, -5.0):
            outcomes.append(_run(sampler, levels, case.normal(2, 2), last_noise=last))
        result.compare(outcomes[1], outcomes[0], f"{n} steps, the last with another noise")


def _run(sampler: Sampler[Any], levels: Sequence[Level], x: Tensor, last_noise: float) -> Tensor:
    denoise, steps = fixtures.with_aux(sampler, fixtures.mixture()), len(levels) - 1
    state, noise = sampler.init(levels), Recorded()
    with torch.no_grad():
        for i, (t, s) in enumerate(pairwise(levels)):
            draw = noise if i < steps - 1 or not s.is_clean else (lambda z: torch.full_like(z, last_noise))
            x, state = sampler.step(denoise, x, t, s, state, draw)
    return x


@law(
    "sampler",
    statement="a sampler draws noise if and only if `stochastic` is set, and only from `noise`",
    source="design.md, randomness; tests/pains.md, 16",
    tolerance=0.0,
)
def declared_noise(case: Case, result: LawResult) -> None:
    """Samples are reproducible only if all noise comes from this function."""
    sampler: Sampler[Any] = case.component
    noise, before = Recorded(), torch.random.get_rng_state()
    sample(fixtures.with_aux(sampler, fixtures.gaussian()), sampler, walk(case, 6), case.normal(2, 2), noise=noise)
    result.holds((noise.calls > 0) == sampler.stochastic, f"{noise.calls} draws", f"stochastic = {sampler.stochastic}")
    same = torch.equal(before, torch.random.get_rng_state())
    result.holds(same, "torch's global generator moved", "only noise(x) is drawn from")


@law(
    "sampler",
    statement="a sampler stores nothing between calls and does not change x: interleaved runs are independent",
    source="tests/pains.md, 18",
    tolerance=0.0,
)
def pure(case: Case, result: LawResult) -> None:
    """A later step receives everything it needs in the state that step returns."""
    sampler: Sampler[Any] = case.component
    tracks = [
        (walk(case, 6), case.normal(2, 2, stream="a")),
        (walk(case, 5, clean=False), case.normal(2, 2, stream="b")),
        (walk(case, 9)[3:], case.normal(2, 2, stream="c")),
    ]
    denoise = fixtures.with_aux(sampler, fixtures.mixture())
    alone = [sample(denoise, sampler, levels, x, noise=Recorded(i)) for i, (levels, x) in enumerate(tracks)]
    states = [sampler.init(levels) for levels, _ in tracks]
    now, noises = [x for _, x in tracks], [Recorded(i) for i in range(3)]
    with torch.no_grad():
        for step in range(6):
            for i, (levels, _) in enumerate(tracks):
                if step < len(levels) - 1:
                    start = now[i].clone()
                    after, states[i] = sampler.step(
                        denoise, now[i], levels[step], levels[step + 1], states[i], noises[i]
                    )
                    result.compare(now[i], start, "x after the step that was given it")
                    now[i] = after
    for i in range(3):
        result.compare(now[i], alone[i], f"run {i} in turn with others")


@law(
    "sampler",
    statement="sample i of a seed is the same in every batch",
    source="tests/pains.md, 16; design.md, randomness",
    tolerance=1e-9,
)
def batch_composition(case: Case, result: LawResult) -> None:
    """Noise depends on (seed, sample, step, draw), and no step mixes examples."""
    sampler: Sampler[Any] = case.component
    denoise, levels = fixtures.with_aux(sampler, fixtures.mixture()), walk(case, 6)
    rows = [4, 0, 9]

    def run(which: list[int]) -> Tensor:
        noise = SampleNoise(7, which)
        start = noise.initial((2,)).double()
        return sample(denoise, sampler, levels, start, noise=noise)

    whole = run(rows)
    for i, row in enumerate(rows):
        result.compare(run([row])[0], whole[i], f"sample {row} alone, and in a batch of 3")
    result.compare(run(rows[::-1]), whole.flip(0), "the batch in another order")
    noise, x = SampleNoise(7, rows), torch.zeros(3, 2)
    draws = [source(x) for step in (0, 1, 2) for source in [noise.at_step(step)] for _ in range(2)]
    equal = sum(bool((draws[i] == draws[j]).any()) for i in range(6) for j in range(i))
    result.holds(equal == 0, f"{equal} pairs of draws share numbers", "each draw of each step its own")
    by_hand, now = SampleNoise(7, rows), SampleNoise(7, rows).initial((2,)).double()
    state = sampler.init(levels)
    with torch.no_grad():
        for step, (t, s) in enumerate(pairwise(levels)):
            now, state = sampler.step(denoise, now, t, s, state, by_hand.at_step(step))
    result.compare(whole, now, "a run by `sample`, and its steps by hand")
    if sampler.stochastic:
        other = sample(
            denoise, sampler, levels, SampleNoise(7, rows).initial((2,)).double(), noise=SampleNoise(8, rows)
        )
        result.holds(float((other - whole).abs().max()) > 0, "another seed gives the same noise", "other samples")


@law(
    "sampler",
    statement="samples have the dtype of x, or that in `dtype`",
    source="design.md, numerics",
    tolerance=1e-3,
)
def types(case: Case, result: LawResult) -> None:
    """Samples in float32 equal those in float64 within rounding."""
    sampler: Sampler[Any] = case.component
    denoise, levels = fixtures.with_aux(sampler, fixtures.mixture()), walk(case, 8)
    x = case.normal(3, 2)
    wide = sample(denoise, sampler, levels, x, noise=Recorded())
    narrow = sample(denoise, sampler, levels, x.float(), noise=Recorded())
    want = sampler.dtype or torch.float32
    result.holds(narrow.dtype == want, f"float32 x became {narrow.dtype}", str(want))
    result.compare(narrow.double(), wide, "a sample in float32")


@law(
    "sampler",
    statement="if `reaches_noise` is set, a sample from alpha = 0 is close to a sample from a level next to it",
    source="Lin et al. 2023 (arXiv:2305.08891); tests/pains.md, 4",
    tolerance=5e-2,
)
def from_noise(case: Case, result: LawResult) -> None:
    """No term of a step may be infinite at zero terminal SNR.

    Multistep methods give the far node a weight that falls as 1 / h, or is constant (bh2): the tolerance allows it.
    """
    sampler: Sampler[Any] = case.component
    if not sampler.reaches_noise:
        raise NotApplicable("reaches_noise is not set")
    oracle = fixtures.with_aux(sampler, fixtures.gaussian())
    x = case.normal(3, 2)
    outcomes = []
    for angle in (0.0, 1e-300):
        start = Level(math.sin(angle), math.cos(angle))
        levels = [start, *(fixtures.zero_terminal().level(float(t)) for t in (10, 7, 4, 1)), Level(1.0, 0.0)]
        outcomes.append(sample(oracle, sampler, levels, x, noise=Recorded()))
    result.compare(outcomes[0], outcomes[1], "from alpha = 0, and from alpha = 1e-300")


@law(
    "sampler",
    statement="a condition that a sampler adds, such as an earlier estimate, moves with the data, and is not always 0",
    source="Chen et al. 2023 (arXiv:2208.04202), sec. 3; identities F8",
    tolerance=1e-9,
    identities="F8",
)
def added_conditions(case: Case, result: LawResult) -> None:
    """Estimates of x0 shift by c if the data shift by c; eps and x do not."""
    sampler: Sampler[Any] = case.component
    c = torch.tensor([2.0, -1.0], dtype=torch.float64)
    runs = []
    for shift in (torch.zeros_like(c), c):
        levels = walk(case, 6)
        recorder = RecordedConditions(fixtures.with_aux(sampler, fixtures.mixture(shift=shift)))
        x = case.normal(3, 2) + levels[0].alpha * shift
        sample(recorder, on(sampler, fixtures.mixture(shift=shift)), levels, x, noise=Recorded())
        runs.append(recorder.calls)
    names = {name for cond in runs[0] for name, value in cond.items() if value.shape == (3, 2)}
    if not names:
        raise NotApplicable("the sampler adds no condition of the shape of x")
    for name in sorted(names):
        pairs = [(a[name], b[name]) for a, b in zip(*runs, strict=True) if name in a and name in b]
        result.holds(any(bool(a.any()) for a, _ in pairs), f"{name} is 0 in all {len(pairs)} calls", "estimates")
        for a, b in pairs:
            if bool(a.any()):
                result.compare(b, a + c, f"{name} of shifted data", 1.0)


@dataclasses.dataclass(frozen=True)
class RecordedConditions:
    """A denoiser that records the conditions of its calls."""

    denoise: Denoiser
    calls: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)

    def __call__(self, x: Tensor, level: Level, /, **cond: Tensor) -> Estimate:
        self.calls.append({name: value.clone() for name, value in cond.items()})
        return self.denoise(x, level)


@law(
    "sampler",
    statement="each number and choice among the options has an effect",
    source="the definition of an option",
    tolerance=0.0,
    name="options-used",
)
def used_options(case: Case, result: LawResult) -> None:
    """An option that no line reads does not do what its description states."""
    x = case.normal(2, 2)
    grids = [walk(case, 4), *([] if case.component.discrete_only else [wide_path()[::2]])]

    def observe(sampler: Sampler[Any]) -> list[Tensor]:
        denoise = fixtures.with_aux(sampler, fixtures.mixture())
        return [sample(denoise, sampler, levels, x * levels[0].sigma, noise=Recorded()) for levels in grids]

    options_used(case, result, observe)


@law("sampler", statement=STATEMENT, source=SOURCE, tolerance=1e-9)
@for_variants
def reference(case: Case, result: LawResult) -> None:
    """The mean and the standard deviation of the noise of a step, from x, x0, eps, and the levels t and s.

    A reference that names q, the level before t, states a second step too; its first step has q = None.
    """
    formula = reference_of(case)
    starts = (0, 1) if "q" in names_of(formula) else (0,)
    for n in (2, 3, 6):
        levels = walk(case, n)
        for path in (levels[:3], levels[n - 2 :]) if len(starts) == 2 else (levels[:2], levels[n - 1 :]):
            for start in starts:
                _compare_step(case, result, path, start)


def _compare_step(case: Case, result: LawResult, levels: Sequence[Level], start: int) -> None:
    """Compare step number `start` on some levels with the reference; an earlier step draws noise 0."""
    sampler: Sampler[Any] = case.component
    oracle = fixtures.mixture()
    denoise, state, x = fixtures.with_aux(sampler, oracle), sampler.init(levels), case.normal(3, 2)
    before: dict[str, Any] = {"q": None, "x_q": None, "x0_q": None, "eps_q": None, "h_q": None}
    for q, t in pairwise(levels[: start + 1]):
        exact = oracle(x, q)
        before = {"q": q, "x_q": x, "x0_q": exact.x0, "eps_q": exact.eps, "h_q": _step_length(q, t)}
        x, state = sampler.step(denoise, x, q, t, state, torch.zeros_like)
    t, s = levels[start : start + 2]
    exact = oracle(x, t)
    values = {"x": x, "x0": exact.x0, "eps": exact.eps, "t": t, "s": s, "h": _step_length(t, s)}
    found = evaluate(reference_of(case), {**values, **before, "denoise": oracle})
    mean, std = found if isinstance(found, tuple) else (found, 0.0)
    for z in (0.0, 1.0):
        got = sampler.step(denoise, x, t, s, state, partial(torch.full_like, fill_value=z))[0]
        title = "a first step" if start == 0 else f"a second step, after one from {levels[0]},"
        result.compare(got, mean + std * z, f"{title} from {t} to {s}, noise {z:g}")


def _step_length(t: Level, s: Level) -> float:
    return math.inf if s.is_clean else float(s.half_logsnr) - float(t.half_logsnr)
