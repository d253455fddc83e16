"""The words of the report, each in one sentence."""

from __future__ import annotations

from ..inputs import ReportInputs
from ..markup import tag
from ..page import Section

WORDS = {
    "x, x₀, ε": "The noisy state x = α x₀ + σ ε holds the clean data x₀ and standard normal noise ε.",
    "α, σ": "The amounts of data and of noise at a time t of the schedule; t grows from clean to noisy.",
    "SNR": "Signal-to-noise ratio, α²/σ².",
    "sampler": "The method that turns noise into a sample, step by step; each step calls the network once or more.",
    "network call": "One evaluation of the network for one sample; the cost of sampling is their number.",
    "guidance": "A change of the estimate at each step: towards a class, or to the range of pixels.",
    "raw and average weights": "Training changes the raw weights; samples are drawn with a moving average of them.",
    "held-out": "Examples that are never trained on.",
    "metric": "A number that compares a set of samples with the training examples.",
    "interval": "A range that contains the true value in 95 of 100 repetitions.",
    "ratio": "How many times worse the samples score than equally many held-out examples.",
    "verdict": "The worst grade of all metrics whose counts and intervals allow one.",
}


def section(inputs: ReportInputs) -> Section | None:
    """Return the list of words; None for a report without results, which has little to explain."""
    if not inputs.results:
        return None
    entries = [tag("div", tag("dt", word), tag("dd", meaning)) for word, meaning in WORDS.items()]
    return Section("glossary", "Words", tag("dl", *entries, class_="definitions"))
