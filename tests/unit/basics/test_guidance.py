"""Guidance that does not fit the codec or the call is refused."""

import pytest
import torch

from diffkit import Level
from diffkit.basics.guidance import ClassifierFree
from diffkit.errors import RecipeError
from diffkit.oracles import GaussianOracle
from diffkit.recipe.validate import load_recipe

RECIPE = """
name: r
data: digits
codec: {name: affine, scale: %s}
schedule: linear
parameterization: eps
network: {name: unet, channels: 8, multipliers: [1], blocks: 1, attention: []}
train: {steps: 2}
sample: {guidance: [%s]}
"""


@pytest.mark.parametrize(
    ("scale", "guidance", "fits"),
    [
        (5.0, "clip", False),
        (5.0, "threshold", False),
        (5.0, "{name: clip, low: -5, high: 5}", True),
        (0.5, "clip", True),
        (0.5, "threshold", True),
    ],
)
def test_latents_are_not_clipped_to_the_range_of_pixels(scale, guidance, fits):
    """Fault A10."""
    if fits:
        assert load_recipe(RECIPE % (scale, guidance)).text
    else:
        with pytest.raises(RecipeError) as raised:
            load_recipe(RECIPE % (scale, guidance))
        assert "unbounded output" in raised.value.render()


def test_a_denoiser_guided_by_labels_warns_without_labels():
    denoise = ClassifierFree(scale=2.0)(GaussianOracle(torch.zeros(2), torch.ones(2)))
    with pytest.warns(UserWarning, match="called without labels; pass label="):
        denoise(torch.zeros(3, 2), Level(0.5, 0.5))
