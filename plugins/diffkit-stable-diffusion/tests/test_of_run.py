"""How long the run that components are made of stays in memory."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from diffkit_stable_diffusion import of_run
from diffkit_stable_diffusion.of_run import RunCodec, RunConditioner, base_of, example_run

from diffkit import ConditionSpec

pytestmark = pytest.mark.slow


def test_components_share_one_reading_until_they_are_used(tmp_path: Path) -> None:
    run = example_run(tmp_path)
    with patch.object(of_run, "open_run", wraps=of_run.open_run) as opened:
        codec, text = RunCodec(run), RunConditioner(ConditionSpec((24,), "text"), run)
    assert opened.call_count == 1
    assert codec.base is text.base is copy.deepcopy(codec).base is base_of(run)
    with torch.no_grad():
        codec.encode(torch.zeros(1, 3, 16, 16))
    assert codec.base is None
    del text
    gc.collect()
    assert not of_run._held
