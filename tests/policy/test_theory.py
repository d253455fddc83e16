"""Every displayed equation of the pages of theory is computed; every mistake that they name is refuted by a number."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest
import torch

from . import theory_bound, theory_ddpm, theory_rate, theory_time  # noqa: F401 - they register checks
from .equations import ALPHA_BAR, BETA, CHECKS, PAGES, TAG, displayed, plain

EQUATIONS = {match[1]: formula for _, formula in displayed() if (match := TAG.search(formula))}


def test_every_equation_has_a_tag_and_a_check() -> None:
    assert len(displayed()) > 0
    tags = Counter(tag for _, formula in displayed() for tag in TAG.findall(formula) or [formula])
    assert tags == Counter(CHECKS.keys())


@pytest.mark.parametrize("tag", EQUATIONS, ids=str)
def test_both_sides_of_an_equation_agree(tag: str) -> None:
    """The page shows the formula that the check computes; change one with the other."""
    check = CHECKS[tag]
    assert plain(EQUATIONS[tag]) == check.formula
    pairs = list(check.sides())
    assert len(pairs) > 0
    for left, right in pairs:
        a, b = (np.asarray(side, dtype=np.float64) for side in map(detached, (left, right)))
        assert a.size > 0
        np.testing.assert_allclose(a, b, rtol=check.tolerance, atol=check.tolerance, equal_nan=False)


def detached(side: object) -> object:
    return side.detach() if isinstance(side, torch.Tensor) else side


def shown(value: float) -> str:
    return f"{value:.3g}"


def beta_for_its_root() -> list[str]:
    wrong = right = 1.0
    for b in BETA:
        wrong, right = (1.0 - b) * wrong + b**2, (1.0 - b) * right + b
    return [shown(wrong), shown(right)]


def variance_for_the_deviation() -> list[str]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    wrong, right = (float(weights @ (factor * nodes) ** 2) for factor in (0.5**2, 0.5))
    ratio = wrong / right
    return [shown(wrong), shown(right), shown(0.5 * (ratio - 1.0 - math.log(ratio)))]


def inverse_of_a_step() -> list[str]:
    found = []
    for factor in (BETA / np.sqrt(1.0 - ALPHA_BAR[1:]), np.sqrt(BETA)):
        variance = 1.0
        for t in range(1000, 0, -1):
            b, sigma = BETA[t - 1], math.sqrt(1.0 - ALPHA_BAR[t])
            variance = ((1.0 - factor[t - 1] * sigma) / math.sqrt(1.0 - b)) ** 2 * variance + b * (t > 1)
        found.append(f"{variance:.4f}" if variance > 0.5 else shown(variance))
    return found


def missing_half() -> list[str]:
    """dv/dt = 2 slope v backwards in time, with the score -x / 1; the integral of beta is -log of alpha_bar."""
    total = -math.log(ALPHA_BAR[-1])
    right, wrong = (math.exp(-2.0 * slope * total) for slope in (-0.5 + 0.5, -0.5 + 1.0))
    return [shown(right), shown(wrong)]


def alpha_for_alpha_bar() -> list[str]:
    pair = (1.0 - BETA[-1], ALPHA_BAR[-1])
    return [*(shown(math.sqrt(a)) for a in pair), *(shown(-0.5 * math.log1p(-a)) for a in pair)]


def logarithm_in_the_divergence() -> list[str]:
    found = []
    for deviation in (1.0, 0.1):
        peak = 1.0 / (deviation * math.sqrt(2.0 * math.pi))
        inside = math.erf(math.sqrt(math.log(peak))) if peak > 1.0 else 0.0  # where log p > 0
        found.append(f"{100.0 * (1.0 - inside):.3g} %")
    return [found[0], "0", found[1]]


MISTAKES = (
    beta_for_its_root,
    variance_for_the_deviation,
    inverse_of_a_step,
    missing_half,
    alpha_for_alpha_bar,
    logarithm_in_the_divergence,
)


def test_the_numbers_of_the_mistakes() -> None:
    """The bold numbers of the section, in order."""
    section = PAGES[0].read_text(encoding="utf-8").partition("## Mistakes often seen in expositions")[2]
    for part, expected in zip(section.split("\n### ")[1:], MISTAKES, strict=True):
        assert re.findall(r"\*\*([^*]+)\*\*", part) == expected(), part.partition("\n")[0]
