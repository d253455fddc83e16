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
    """w is the weight of the error of x0; the weight of the error of eps is min(snr, gamma) / snr."""
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
    """w is a smooth minimum of snr and gamma."""
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
    """P2 multiplies the loss of eps, whose weight on x0 is snr, by 1 / (k + snr)^gamma."""
    k, gamma = case.component.k, case.component.gamma
    compare_weight(case, result, lambda level: snr(level) / (k + snr(level)) ** gamma)
