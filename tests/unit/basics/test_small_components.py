"""The augmentation, the codec and the tracker that come with diffkit."""

import math
import sys
import typing

import pytest
import torch
from hypothesis import given, strategies as st

from diffkit.basics.augmentation import Flip
from diffkit.basics.codec import Affine
from diffkit.basics.tensorboard import TensorBoard
from diffkit.data import DataSpec
from diffkit.errors import DataError, PluginError


def test_flip_mirrors_where_the_uniform_number_says_so():
    x = torch.arange(2 * 3 * 2 * 4.0).view(2, 3, 2, 4)
    uniform = torch.tensor([[0.3], [0.7]])
    cond = {"label": torch.tensor([1, 2])}
    y, same = Flip()(x, uniform, cond)
    assert torch.equal(y[0], x[0].flip(-1))
    assert torch.equal(y[1], x[1])
    assert same is cond
    assert torch.equal(Flip(0.0)(x, uniform, cond)[0], x)
    assert torch.equal(Flip(1.0)(x, uniform, cond)[0], x.flip(-1))
    assert Flip().draws == 1


def test_flip_refuses_vectors():
    with pytest.raises(DataError) as raised:
        Flip()(torch.zeros(4, 3), torch.zeros(4, 1), {})
    assert raised.value.code == "DK310"


@given(shift=st.floats(-5, 5), scale=st.floats(0.1, 5), channels=st.integers(1, 3))
def test_affine_inverts_itself(shift, scale, channels):
    for codec in (Affine(shift, scale), Affine((shift,) * channels, scale), Affine(shift, (-scale,) * channels)):
        x = torch.linspace(-1, 1, 4 * channels, dtype=torch.float64).view(2, channels, 2)
        torch.testing.assert_close(codec.decode(codec.encode(x)), x)


def test_affine_per_channel():
    codec = Affine(shift=(1.0, -1.0), scale=(2.0, 0.5))
    x = torch.tensor([[[3.0], [3.0]]])
    assert codec.encode(x).flatten().tolist() == [4.0, 2.0]
    assert codec.encode(x[..., 0]).tolist() == [[4.0, 2.0]]


def test_affine_spec():
    data = DataSpec(2, (4, 4), 3, bounded=True, bins=256, class_names=("a", "b", "c"))
    assert Affine(scale=0.5).spec(data) == DataSpec(2, (4, 4), 3, True, None, ("a", "b", "c"))
    assert not Affine(scale=2.0).spec(data).bounded
    assert not Affine(shift=(0.0, 0.5)).spec(data).bounded
    assert Affine(shift=1.0, scale=-0.5).spec(data).bounded
    assert not Affine(scale=0.5).spec(DataSpec(2)).bounded
    with pytest.raises(ValueError, match="3 values for 2 channels"):
        Affine(shift=(0.0, 0.0, 0.0)).spec(data)


@pytest.mark.parametrize("options", [(0.0, 0.0), (0.0, (1.0, 0.0)), ((0.0,), (1.0, 2.0)), ((), 1.0)])
def test_affine_refuses_what_has_no_inverse(options):
    with pytest.raises(ValueError, match="scale"):
        Affine(*options)


def test_tensorboard_records_scalars_and_replaces_lost_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (range(5), range(3, 8)):  # the first process died after step 4 and had saved step 2
        tracker = TensorBoard(folder="events")
        tracker.on_start(tmp_path)
        for step in steps:
            tracker.log(step, {"loss": math.sqrt(step) + len(steps) * (steps.start > 0), "lr": 1e-3})
        tracker.on_end(None)
        tracker.on_end(None)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    loss = {event.step: event.value for event in events.Scalars("loss")}
    assert sorted(loss) == list(range(8))
    assert loss[2] == pytest.approx(math.sqrt(2))
    assert loss[4] == pytest.approx(2 + 5)
    assert events.Tags()["scalars"] == ["loss", "lr"]


def test_tensorboard_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(PluginError, match=r'pip install "diffkit\[tensorboard\]"') as raised:
        TensorBoard().on_start(tmp_path)
    assert raised.value.code == "DK290"


def test_tensorboard_stays_in_the_run_directory():
    for folder in ("/tmp/x", "../x"):
        with pytest.raises(ValueError, match="run directory"):
            TensorBoard(folder)


@pytest.mark.parametrize("component", [Flip, Affine, TensorBoard])
def test_recipe_schemas_can_be_derived(component):
    assert typing.get_type_hints(component, include_extras=True)
