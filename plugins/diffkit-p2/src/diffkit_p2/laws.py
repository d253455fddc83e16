"""Laws of the weightings: their formulas."""

from __future__ import annotations

from diffkit.testing import Case, LawResult, law
from diffkit.testing.by_kind.weighting import compare_weight, snr


@law(
    "weighting",
    statement="w = min(snr, gamma)",
    source="Hang et al. 2023 (arXiv:2303.09556), sec. 3.4",
    tolerance=1e-9,
    identities="C5",
    only=("min-snr",),
)
def min_snr_formula(case: Case, result: LawResult) -> None:
    """On x0, whatever is predicted; on eps it is min(snr, gamma) / snr."""
    gamma = case.component.gamma
    compare_weight(case, result, lambda level: snr(level).clamp(max=gamma))


@law(
    "weighting",
    statement="w = snr gamma / (snr + gamma)",
    source="Crowson et al. 2024 (arXiv:2401.11605), sec. 3.4",
    tolerance=1e-9,
    only=("soft-min-snr",),
)
def soft_min_snr_formula(case: Case, result: LawResult) -> None:
    """The harmonic minimum of the two."""
    gamma = case.component.gamma
    compare_weight(case, result, lambda level: snr(level) * gamma / (snr(level) + gamma))


@law(
    "weighting",
    statement="w = snr / (k + snr)^gamma",
    source="Choi et al. 2022 (arXiv:2204.00227), eq. 8",
    tolerance=1e-9,
    identities="C5",
    only=("p2",),
)
def p2_formula(case: Case, result: LawResult) -> None:
    """1 / (k + snr)^gamma on the eps loss, whose weight on x0 is snr."""
    k, gamma = case.component.k, case.component.gamma
    compare_weight(case, result, lambda level: snr(level) / (k + snr(level)) ** gamma)
