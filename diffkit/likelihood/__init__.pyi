"""The public names of diffkit.likelihood, each with the module that defines it."""

from .bound import Bound as Bound, gaussian_kl as gaussian_kl, term as term, variational_bound as variational_bound
from .chain import (
    Chain as Chain,
    Variance as Variance,
    fit_errors as fit_errors,
    interpolated as interpolated,
    prior_kl as prior_kl,
    wide as wide,
)
from .continuous import ContinuousBound as ContinuousBound, Points as Points, continuous_bound as continuous_bound
from .decoder import Categorical as Categorical, Decoder as Decoder, Density as Density, Discretised as Discretised
from .dequantisation import (
    Dequantisation as Dequantisation,
    bits_per_dim as bits_per_dim,
    dequantise as dequantise,
)
from .ode import (
    TABLEAUS as TABLEAUS,
    Adaptive as Adaptive,
    Fixed as Fixed,
    FlowDensity as FlowDensity,
    Tableau as Tableau,
    divergence as divergence,
    flow_slope as flow_slope,
    log_density as log_density,
    solve as solve,
    standard_normal as standard_normal,
)

__all__: list[str]
