"""Tests for components of every kind: laws, `check`, exact denoisers, order fits, and a pytest plugin.

Nothing here imports torch before it is used: every public name is loaded from its module on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_MODULES = {
    "affine": "Affine NotAffineError Normal compare_steps first_order posterior_kernel probe",
    "case": "Case",
    "engine": "Report Row check check_class",
    "law_registry": "Law LawResult NotApplicable law laws",
    "order": "OrderFit measure polynomial_error run_from_exact",
}
_ORACLES = "GaussianOracle MixtureOracle Oracle OracleNetwork PointMassOracle PolynomialOracle"
_WHERE = {name: f"diffkit.testing.{module}" for module, names in _MODULES.items() for name in names.split()}
_WHERE |= dict.fromkeys(_ORACLES.split(), "diffkit.oracles")
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'diffkit.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from ..oracles.base import Oracle as Oracle
    from ..oracles.gaussian import GaussianOracle as GaussianOracle, PointMassOracle as PointMassOracle
    from ..oracles.mixture import MixtureOracle as MixtureOracle
    from ..oracles.network import OracleNetwork as OracleNetwork
    from ..oracles.polynomial import PolynomialOracle as PolynomialOracle
    from .affine import (
        Affine as Affine,
        Normal as Normal,
        NotAffineError as NotAffineError,
        compare_steps as compare_steps,
        first_order as first_order,
        posterior_kernel as posterior_kernel,
        probe as probe,
    )
    from .case import Case as Case
    from .engine import Report as Report, Row as Row, check as check, check_class as check_class
    from .law_registry import (
        Law as Law,
        LawResult as LawResult,
        NotApplicable as NotApplicable,
        law as law,
        laws as laws,
    )
    from .order import (
        OrderFit as OrderFit,
        measure as measure,
        polynomial_error as polynomial_error,
        run_from_exact as run_from_exact,
    )
