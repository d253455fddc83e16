"""A mistake in a call of the library is named with its argument, and the error contains the fix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffkit import DiffkitError, Level, Model, Schedule, Shape, attribute, build, guide, sample
from diffkit.ddpm.parameterization import Eps
from diffkit.ddpm.schedule import Linear

LEVELS = [Level(0.6, 0.8), Level(1.0, 0.0)]
X = torch.zeros(2, 3)


class Plain(nn.Module):
    """A module that knows nothing of diffkit."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        out: Tensor = self.linear(x) + c_noise[:, None] + (0 if label is None else label[:, None])
        return out


MODEL = Model(Plain(), Eps(), Linear())
DDIM = build("sampler", "ddim")


def test_any_module_is_a_network() -> None:
    x0 = sample(MODEL, DDIM, build("grid", "trailing").levels(Linear(), 4), X)
    assert x0.shape == X.shape
    level = Linear().level(500.0)
    assert not torch.equal(MODEL(X, level, label=torch.tensor([1, 2])).eps, MODEL(X, level).eps)


def test_repr_of_a_model_is_one_line() -> None:
    assert repr(MODEL) == "Model(Plain with 12 parameters, Eps(), Linear(steps=1000, beta_start=0.0001, beta_end=0.02))"


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "order of Model": (
        lambda: Model(Eps(), Plain(), Linear()),
        r"argument 1 \(`network`\) must be an nn.Module, got Eps",
    ),  # type: ignore[arg-type]
    "no schedule": (lambda: Model(Plain(), Eps(), 1000), r"argument 3 \(`schedule`\) must be a Schedule, got int"),  # type: ignore[arg-type]
    "time for level": (
        lambda: MODEL(X, 500),
        r"argument 2 \(`level`\) must be a Level, got int; fix: .*schedule.level",
    ),  # type: ignore[arg-type]
    "integers": (lambda: MODEL(X.long(), LEVELS[0]), r"floating-point tensor, got torch.int64; fix: .*to_model_range"),
    "no tensor": (lambda: MODEL([0.0], LEVELS[0]), "floating-point tensor, got list"),  # type: ignore[arg-type]
    "generator": (
        lambda: sample(MODEL, DDIM, LEVELS, X, noise=torch.Generator()),  # type: ignore[arg-type]
        r"`noise` must be a SampleNoise or a function, got Generator; fix: pass SampleNoise\(seed, range\(count\)\)",
    ),
    "order of sample": (
        lambda: sample(MODEL, LEVELS, DDIM, X),
        r"argument 2 \(`sampler`\) must be a Sampler, got list",
    ),  # type: ignore[arg-type]
    "name of a sampler": (lambda: sample(MODEL, "ddim", LEVELS, X), "must be a Sampler, got str; fix: build it"),  # type: ignore[arg-type]
    "number of levels": (
        lambda: sample(MODEL, DDIM, 20, X),
        r"argument 3 \(`levels`\) must be a list of levels, got int",
    ),  # type: ignore[arg-type]
    "numbers": (
        lambda: sample(MODEL, DDIM, [1.0, 0.0], X),
        "must be a list of levels, got float; fix: make them by a grid",
    ),  # type: ignore[list-item]
    "shape for x": (lambda: sample(MODEL, DDIM, LEVELS, (2, 3)), r"argument 4 \(`x`\) must be a tensor, got tuple"),  # type: ignore[arg-type]
    "no denoiser": (lambda: sample(DDIM, MODEL, LEVELS, X), r"argument 1 \(`denoise`\) must be a denoiser, got DDIM"),  # type: ignore[arg-type]
    "steps for schedule": (
        lambda: build("grid", "trailing").levels(20, Linear()),
        r"argument 1 \(`schedule`\) must be",
    ),
    "fractional steps": (lambda: build("grid", "trailing").levels(Linear(), 2.5), r"argument 2 \(`n`\) must be an int"),
    "name of guidance": (lambda: guide(MODEL, "cfg"), "must be a Guidance or a list of them, got str; fix: build it"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises(TypeError, match=message) as caught:
        call()
    assert isinstance(caught.value, DiffkitError)
    assert caught.value.fix


@pytest.mark.parametrize("network", ["unet", "mlp"])
def test_cfg_needs_no_shape(network: str) -> None:
    """Without a label and with the null class, a network of diffkit gives the same output."""
    shape = Shape(3, 3, (8, 8) if network == "unet" else (), 4)
    options = {"channels": 4, "multipliers": (1,), "blocks": 1, "attention": ()} if network == "unet" else {}
    model = Model(build("network", network, shape=shape, **options), Eps(), Linear())
    for parameter in model.network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, level, label = torch.randn(2, 3, *shape.size), Linear().level(500.0), torch.tensor([1, 3])
    with_shape = build("guidance", "cfg", shape=shape, scale=5.0)(model)(x, level, label=label)
    without = build("guidance", "cfg", scale=5.0)(model)(x, level, label=label)
    torch.testing.assert_close(without.eps, with_shape.eps)
    assert not torch.equal(without.eps, model(x, level, label=label).eps)


def test_wrong_image_shape() -> None:
    network = build("network", "unet", shape=Shape(3, 3, (8, 8)), channels=4, multipliers=(1,), blocks=1, attention=())
    model = Model(network, Eps(), Linear())
    with pytest.raises(DiffkitError, match=r"x \(B, 3, H, W\)"):
        model(torch.zeros(2, 1, 8, 8), LEVELS[0])


def test_attributes_may_be_values_fields_or_properties() -> None:
    class Ends(Schedule):
        t_noise = 5.0

        @property
        def t_clean(self) -> float:
            return 1.0

        def level(self, t):  # type: ignore[no-untyped-def]
            return Level(1.0, t)

        def time(self, level):  # type: ignore[no-untyped-def]
            return level.ratio

    assert (Ends().t_clean, Ends().t_noise, Ends().steps) == (1.0, 5.0, None)
    assert Schedule.t_noise == 1.0
    assert Schedule.__dict__["t_noise"].__doc__.startswith("Time of the noisiest level")
    assert Linear(steps=10).steps == 10

    class Base:
        @attribute
        def size(self) -> int:
            return 3

    assert (Base.size, Base().size) == (3, 3)
