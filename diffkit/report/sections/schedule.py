"""The noise schedule: alpha, sigma and log-SNR over time, and the share of data at the last level."""

from __future__ import annotations

import numpy as np

from ..charts import LineChart, Series, line_chart, spans_decades
from ..inputs import ReportInputs, ScheduleCurves
from ..markup import Html
from ..page import Section, card, cards
from ..wording import count, figure

STROKES = 50  # drawn for the times that the sampler visits


def section(inputs: ReportInputs) -> Section | None:
    """Return the curves of the noise schedule; None if there are none."""
    curves = inputs.schedule
    if curves is None or len(curves.t) < 2:
        return None
    shown = [drawn for drawn in (_coefficients(curves), _snr(curves)) if drawn]
    return Section("schedule", "Noise schedule", cards(*shown), terminal(curves)) if shown else None


def terminal(curves: ScheduleCurves) -> str:
    """Describe the share of the data that is left at the noisiest level."""
    last = int(np.argmax(curves.t))
    t, alpha, sigma = (float(values[last]) for values in (curves.t, curves.alpha, curves.sigma))
    at = f"At the end, t = {figure(t, 4)}"
    if alpha == 0:
        return f"{at}, the terminal SNR is exactly 0: x is pure noise, as at the start of sampling."
    if not sigma > 0:
        return f"{at}, there is no noise (sigma = {figure(sigma)})."
    kept = f"{figure(100 * alpha / float(np.hypot(alpha, sigma)))} % of the amplitude of x is data"
    pair = f"alpha = {figure(alpha)}, sigma = {figure(sigma)}"
    return f"{at}, the terminal SNR is {figure((alpha / sigma) ** 2)} ({pair}): {kept}."


def _coefficients(curves: ScheduleCurves) -> Html:
    visited = np.array([]) if curves.sampler_t is None else np.asarray(curves.sampler_t, dtype=np.float64)
    log = spans_decades(curves.sigma[np.asarray(curves.sigma) > 0], 3) and float(np.max(curves.sigma)) > 2
    series = [
        Series("α, of the data", curves.t, curves.alpha),
        Series("σ, of the noise", curves.t, curves.sigma, "second"),
    ]
    every = -(-len(visited) // STROKES) or 1
    chart = line_chart(LineChart("alpha and sigma over time", "t", series, log_y=log, rug=visited[::every]))
    which = f"every {every}th of the" if every > 3 else "every second of the" if every == 2 else "every third of the"
    which = "the" if every == 1 else which
    steps = (
        f" Strokes on the axis: {which} {count(len(visited))} times that the sampler visits." if visited.size else ""
    )
    return card(chart, title="Coefficients", caption=f"x = α x₀ + σ ε: the shares of data and noise in x.{steps}")


def _snr(curves: ScheduleCurves) -> Html:
    alpha, sigma = (np.asarray(values, dtype=np.float64) for values in (curves.alpha, curves.sigma))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_snr = 2 * (np.log(alpha) - np.log(sigma))
    chart = line_chart(LineChart("log-SNR over time", "t", [Series("log-SNR", curves.t, log_snr)]))
    caption = "2 log(α/σ). At 0, data and noise are equally strong. Infinite ends are left out."
    return card(chart, title="Log-SNR", caption=caption) if chart else Html("")
