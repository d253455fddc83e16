"""Classifier-free guidance of several conditions; guidance that does not fit the codec or the call is refused."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from diffkit import Conditions, ConditionSpec, Estimate, Level, Model, Shape, Unchanged, evaluate
from diffkit.basics.guidance import ClassifierFree
from diffkit.ddpm.mlp import MLP
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear
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
    with pytest.warns(UserWarning, match="called without label; pass label="):
        denoise(torch.zeros(3, 2), Level(0.5, 0.5))


F64 = torch.float64
LEVEL = Level(0.8, 0.6)
X = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
COND = {"label": torch.tensor([0, 1, 1, 0]), "size": torch.tensor([[0.5], [-1.0], [2.0], [0.3]], dtype=F64)}
SPECS = {"label": ConditionSpec(classes=2), "size": ConditionSpec((1,))}
BOTH = Conditions({name: Unchanged(spec) for name, spec in SPECS.items()}, SPECS)


@dataclass
class Joint:
    """The exact denoiser of N(m_label + size, v_label), of which null label and size 0 are one more distribution."""

    rows: list[int] = field(default_factory=list)
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.1, 0.2]], dtype=F64)
    variances = torch.tensor([0.2, 0.4, 0.9], dtype=F64)

    def __call__(self, x: Tensor, level: Level, /, *, label: Tensor, size: Tensor) -> Estimate:
        self.rows.append(len(x))
        return Estimate.from_x0(x, level, self.x0(x, label, size))

    def x0(self, x: Tensor, label: Tensor, size: Tensor) -> Tensor:
        m, v, (a, s) = self.means[label] + size, self.variances[label][:, None], (0.8, 0.6)
        return m + a * v / (a * a * v + s * s) * (x - a * m)


NULL = {"label": torch.full((4,), 2), "size": torch.zeros(4, 1, dtype=F64)}


def null(*names: str) -> dict[str, Tensor]:
    """COND without some conditions."""
    return COND | {name: NULL[name] for name in names}


@pytest.mark.parametrize(
    ("names", "lacking"), [((), ("label", "size")), (("label",), ("label",)), (("size",), ("size",))]
)
def test_the_null_estimate_lacks_the_named_conditions(names: tuple[str, ...], lacking: tuple[str, ...]) -> None:
    denoise = Joint()
    got = ClassifierFree(scale=3.0, names=names, conditions=BOTH)(denoise)(X, LEVEL, **COND)
    base, full = denoise.x0(X, **null(*lacking)), denoise.x0(X, **COND)
    torch.testing.assert_close(got.x0, base + 3.0 * (full - base), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(LEVEL.add_noise(got.x0, got.eps), X)
    assert denoise.rows == [8], "both estimates are evaluated in one call"


def test_two_scales_add_conditions_in_order() -> None:
    """Brooks et al. 2023, eq. 3."""
    denoise = Joint()
    guided = ClassifierFree(scales={"size": 1.5, "label": 4.0}, conditions=BOTH)(denoise)(X, LEVEL, **COND)
    none, size, both = (denoise.x0(X, **cond) for cond in (null("label", "size"), null("label"), COND))
    torch.testing.assert_close(guided.x0, none + 1.5 * (size - none) + 4.0 * (both - size), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(LEVEL.add_noise(guided.x0, guided.eps), X)
    assert denoise.rows == [12]


@pytest.mark.parametrize(("scales", "rows"), [((1.0, 3.0), 8), ((3.0, 3.0), 8), ((3.0, 1.0), 12), ((1.0, 1.0), 4)])
def test_scales_that_are_equal_or_one_save_evaluations(scales: tuple[float, float], rows: int) -> None:
    denoise = Joint()
    options = dict(zip(("size", "label"), scales, strict=True))
    guided = ClassifierFree(scales=options, conditions=BOTH)(denoise)(X, LEVEL, **COND)
    none, size, both = (denoise.x0(X, **cond) for cond in (null("label", "size"), null("label"), COND))
    torch.testing.assert_close(guided.x0, none + scales[0] * (size - none) + scales[1] * (both - size))
    assert denoise.rows == [rows]


def test_a_negative_condition_replaces_the_null() -> None:
    denoise = Joint()
    guidance = ClassifierFree(scale=2.5, negative={"size": [-1.0]}, conditions=BOTH)
    got = guidance(denoise)(X, LEVEL, **COND)
    base = denoise.x0(X, torch.full((4,), 2), torch.full((4, 1), -1.0, dtype=F64))
    torch.testing.assert_close(got.x0, base + 2.5 * (denoise.x0(X, **COND) - base), rtol=1e-9, atol=1e-9)
    assert guidance.needs_null
    assert not ClassifierFree(names=("size",), negative={"size": [-1.0]}, conditions=BOTH).needs_null


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ("text",)}, "names the condition text, but the model has: label, size"),
        ({"scales": {"text": 2.0}}, "names the condition text"),
        ({"scales": {"label": 2.0}, "scale": 3.0}, "scale and names have no effect"),
        ({"names": ("label",), "negative": {"size": [1.0]}}, "negative holds size, which cfg does not guide"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierFree(conditions=BOTH, **options)


@pytest.mark.parametrize(
    "level", [LEVEL, Level(torch.tensor([0.9, 0.8, 0.5, 0.2]), torch.tensor([0.2, 0.6, 0.8, 1.0]))]
)
def test_one_call_on_a_long_batch_is_equal_to_two_calls(level: Level) -> None:
    torch.manual_seed(0)
    network = MLP(Shape(2, 2, (), 3), width=32, depth=2, initialisation="torch").eval()
    model = Model(network, Eps(), Linear())
    x, sets = X.float(), [{"label": torch.full((4,), 3)}, {"label": torch.tensor([0, 1, 2, 0])}]
    with torch.no_grad():
        for got, cond in zip(evaluate(model, x, level, sets), sets, strict=True):
            want = model(x, level, **cond)
            torch.testing.assert_close(got.x0, want.x0, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(got.eps, want.eps, rtol=1e-5, atol=1e-5)
            assert got.level is level
