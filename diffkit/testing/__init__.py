"""Exact tests for every kind of component: oracles, laws, order fits, `check`, and a pytest plugin.

Nothing here imports torch before it is used: every public name is loaded from its module on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_MODULES = {
    "affine": "Affine Normal first_order posterior_kernel",
    "engine": "Report Row check check_class",
    "law_registry": "Inapplicable Law Worst law laws",
    "order": "OrderFit measure polynomial_error run_from_exact",
    "affine_probe": "NotAffineError probe",
    "subject": "Subject",
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
    from ..oracles.gaussian import GaussianOracle as GaussianOracle
    from ..oracles.gaussian import PointMassOracle as PointMassOracle
    from ..oracles.mixture import MixtureOracle as MixtureOracle
    from ..oracles.network import OracleNetwork as OracleNetwork
    from ..oracles.polynomial import PolynomialOracle as PolynomialOracle
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
    from .law_registry import Inapplicable as Inapplicable
    from .law_registry import Law as Law
    from .law_registry import Worst as Worst
    from .law_registry import law as law
    from .law_registry import laws as laws
    from .order import OrderFit as OrderFit
    from .order import measure as measure
    from .order import polynomial_error as polynomial_error
    from .order import run_from_exact as run_from_exact
    from .subject import Subject as Subject
