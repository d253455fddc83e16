"""Exact tests for every kind of component: oracles, laws, order fits, `check`, and a pytest plugin.

Nothing here imports torch before it is used: every public name is loaded from its module on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_MODULES = {
    "affine": "Affine Normal first_order posterior_kernel",
    "engine": "Report Row check check_class",
    "lawbook": "Inapplicable Law Worst law laws",
    "oracle": "Oracle",
    "oracle_gaussian": "GaussianOracle PointMassOracle",
    "oracle_mixture": "MixtureOracle",
    "oracle_network": "OracleNetwork",
    "oracle_polynomial": "PolynomialOracle",
    "order": "OrderFit measure polynomial_error run_from_exact",
    "affine_probe": "NotAffineError probe",
    "subject": "Subject",
}
_WHERE = {name: f"diffkit.testing.{module}" for module, names in _MODULES.items() for name in names.split()}
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
    from .affine import Affine as Affine
    from .affine import Normal as Normal
    from .affine import first_order as first_order
    from .affine import posterior_kernel as posterior_kernel
    from .affine_probe import NotAffineError as NotAffineError
    from .affine_probe import probe as probe
    from .engine import Report as Report
    from .engine import Row as Row
    from .engine import check as check
    from .engine import check_class as check_class
    from .lawbook import Inapplicable as Inapplicable
    from .lawbook import Law as Law
    from .lawbook import Worst as Worst
    from .lawbook import law as law
    from .lawbook import laws as laws
    from .oracle import Oracle as Oracle
    from .oracle_gaussian import GaussianOracle as GaussianOracle
    from .oracle_gaussian import PointMassOracle as PointMassOracle
    from .oracle_mixture import MixtureOracle as MixtureOracle
    from .oracle_network import OracleNetwork as OracleNetwork
    from .oracle_polynomial import PolynomialOracle as PolynomialOracle
    from .order import OrderFit as OrderFit
    from .order import measure as measure
    from .order import polynomial_error as polynomial_error
    from .order import run_from_exact as run_from_exact
    from .subject import Subject as Subject
