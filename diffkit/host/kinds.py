"""The kinds that diffkit itself knows; plugins may add more through `diffkit_kinds`."""

from __future__ import annotations

from .entry import Kind

KINDS = (
    Kind("schedule", "diffkit.schedule:Schedule", "a curve of noise levels over time"),
    Kind("parameterization", "diffkit.parameterization:Parameterization", "what the output of a network means"),
    Kind("network", "diffkit.network:Network", "what is trained"),
    Kind("sampler", "diffkit.sampler:Sampler", "the step from one level to a cleaner one"),
    Kind("grid", "diffkit.grid:Grid", "which levels a sampler visits"),
    Kind("times", "diffkit.times:Times", "which times are drawn in training"),
    Kind("objective", "diffkit.objective:Objective", "the loss"),
    Kind("weighting", "diffkit.objective:Weighting", "the weight of the x0 error at each level"),
    Kind("guidance", "diffkit.guidance:Guidance", "a denoiser made from a denoiser"),
    Kind("codec", "diffkit.codec:Codec", "data to what diffuses, and back"),
    Kind("augmentation", "diffkit.data:Augmentation", "a random change of training examples"),
    Kind("data", "diffkit.data:Data", "where the clean examples come from"),
    Kind("metric", "diffkit.metric:Metric", "how far samples are from data"),
    Kind("tracker", "diffkit.tracker:Tracker", "where the numbers of a run are sent"),
)
