"""Levels at which an output says nothing: the end that is at fault is named."""

from __future__ import annotations

import pytest
import torch

from diffkit import Level, LevelError
from diffkit.ddpm.parameterization import X0, Eps


@pytest.mark.parametrize(
    ("parameterization", "code", "end"), [(Eps(), "DK501", "alpha = 0"), (X0(), "DK502", "sigma = 0")]
)
def test_the_row_that_cannot_be_decoded_is_the_one_that_is_named(
    parameterization: Eps | X0, code: str, end: str
) -> None:
    """A batch with clean data, pure noise, and something between: eps fails at the second, x0 at the first."""
    level = Level(torch.tensor([1.0, 0.0, 0.6]), torch.tensor([0.0, 1.0, 0.8]))
    with pytest.raises(LevelError, match=end) as caught:
        parameterization.decode(torch.randn(3, 2), torch.randn(3, 2), level)
    assert caught.value.code == code
