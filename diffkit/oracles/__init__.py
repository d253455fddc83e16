"""Exact denoisers in closed form, for data with a known distribution: Gaussian, mixture, point mass, polynomial."""

from .base import Oracle
from .gaussian import GaussianOracle, PointMassOracle
from .mixture import MixtureOracle
from .network import LevelNetwork, OracleNetwork, ideal_output
from .polynomial import PolynomialOracle

__all__ = [
    "GaussianOracle",
    "LevelNetwork",
    "MixtureOracle",
    "Oracle",
    "OracleNetwork",
    "PointMassOracle",
    "PolynomialOracle",
    "ideal_output",
]
