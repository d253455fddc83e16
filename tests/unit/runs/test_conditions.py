"""Texts and other conditions through a whole run: training, sampling, files, report, and faults before compute."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from diffkit import Run, assemble, load_recipe, open_run, run
from diffkit.cli.main import main
from diffkit.data import as_texts
from diffkit.errors import ArgumentError, RecipeError
from diffkit.host import configure, load_file, registry
from diffkit.noise import RandomStreams
from diffkit.runs.planning import changed_guidance
from diffkit.runs.sample_files import load_npz, save_png
from diffkit.runs.training import make_trainer
from diffkit.train.trainer import Trainer

pytestmark = pytest.mark.xdist_group("conditions")

PLUGIN = Path(__file__).with_name("words_plugin.py")
RECIPE = """
name: words
data: {name: captioned, condition_dropout: 0.1}
conditions: {text: {name: text, width: 16, depth: 1, heads: 2}}
schedule: {name: linear, steps: 50, beta_start: 0.002, beta_end: 0.3}
parameterization: eps
network: reader
train: {steps: 250, batch_size: 32, optimizer: {name: adam, lr: 5.0e-3}, ema: {decay: 0.98, warmup: true}}
sample: {sampler: ancestral, count: 8}
"""


@pytest.fixture
def words() -> Iterator[ModuleType]:
    """The plugin, loaded as `-P words_plugin.py` loads it."""
    load_file(PLUGIN)
    yield sys.modules[registry().find("conditioner", "frozen").load().__module__]
    configure()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run of the recipe."""
    load_file(PLUGIN)
    made = run(load_recipe(RECIPE), tmp_path_factory.mktemp("words") / "words", device="cpu", quiet=True)
    configure()
    return made.directory.path


@pytest.fixture
def trained(words: ModuleType, finished: Path) -> Run:
    """The finished run."""
    return open_run(finished, device="cpu")


def sides(x: torch.Tensor) -> list[bool]:
    return (x[:, 0] > 0).tolist()


def test_samples_follow_their_text(trained: Run) -> None:
    x = trained.sample(32, conditions={"text": ["left", "right"]})
    agree = sum(side == bool(i % 2) for i, side in enumerate(sides(x)))
    assert agree >= 30
    whole, part = (trained.sample(n, conditions={"text": "right"}, seed=3) for n in (4, 2))
    torch.testing.assert_close(whole[:2], part)


def test_without_a_request_samples_have_the_texts_of_held_out_examples(trained: Run) -> None:
    stored = load_npz(trained.directory.samples / "samples.npz")
    raw = torch.from_numpy(stored["condition.text"])
    assert as_texts(raw) == ["left", "right"] * 4
    assert sides(torch.from_numpy(stored["x"])) == [False, True] * 4
    page = trained.directory.report.read_text()
    assert "Condition text, in turn from left to right: left, right." in page


def test_requests_that_do_not_fit_are_refused(trained: Run) -> None:
    for conditions, told in (
        ({"txt": "left"}, "there is no condition txt; the model has: text"),
        ({"text": 3}, "text must be a text or a list of texts, got 3"),
        ({"label": 1}, "labels cannot be chosen"),
        ({"text": []}, "no value is given"),
    ):
        with pytest.raises(ArgumentError, match=told):
            trained.sample(1, conditions=conditions)
    for options, told in (
        ({"prompt": "left", "conditions": {"text": "right"}}, "prompt and text of the condition are both given"),
        ({"scale": 2.0, "guidance": {"cfg": 3.0}}, "scale and scale of the guidance cfg are both given"),
        ({"negative": "a", "guidance": {"cfg": {"negative": {"text": "b"}}}}, "negative and negative of the guidance"),
        ({"scale": float("inf")}, "scale is inf"),
    ):
        with pytest.raises(ArgumentError, match=told):
            trained.sample(1, **options)
    with pytest.raises(RecipeError, match="scale must be a number"):
        trained.sample(1, scale="much")
    with pytest.warns(UserWarning, match="has 11 bytes and is cut to the 8 of the data"):
        trained.sample(1, conditions={"text": "left " + "x" * 6})


FAULTS = (
    ("conditions={txt: text}", "conditions.txt", 'the data has no condition "txt"'),
    ("conditions=null", "data.name", "reaches a network only through a conditioner"),
    ("conditions={text: label}", "conditions.text", "label requires a condition of classes"),
    (
        "network=mlp",
        "conditions.text",
        "network mlp does not take the condition text: its forward has no argument text",
    ),
    ("network=blind", "conditions", "network blind does not take its conditions in their shapes, text (9, 16)"),
    ("network=stubborn", "conditions", "network stubborn does not take its conditions in their shapes, text (9, 16)"),
    ("network=demanding", "conditions.text", "does not take the condition text"),
    ("data.condition_dropout={txt: 0.1}", "data.condition_dropout.txt", "not a condition of the network"),
    (
        "data.condition_dropout={joint: 0.1, text: 0.1}",
        "data.condition_dropout.joint",
        "not a condition of the network",
    ),
    ("data.label_dropout=0.1", "data.label_dropout", 'unknown key "label_dropout" in data'),
    ("sample.conditions={text: 3}", "sample.conditions.text", "must be a text or a list of texts"),
    ("sample.conditions={hint: 3}", "sample.conditions.hint", "there is no condition hint"),
)


@pytest.mark.parametrize(("change", "path", "told"), FAULTS)
def test_a_condition_that_does_not_fit_is_one_error_at_its_line(
    words: ModuleType, change: str, path: str, told: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(RECIPE, [change])
    (fault,) = caught.value.errors
    assert told in fault.message
    assert fault.where is not None
    assert fault.where.path == path
    if "label_dropout" in change:
        assert fault.hint == 'did you mean "condition_dropout"?'


def test_a_network_that_requires_more_than_sampling_supplies_is_refused(words: ModuleType) -> None:
    with pytest.raises(
        RecipeError, match="network demanding requires the condition mood, which sampling cannot supply"
    ):
        load_recipe(RECIPE, ["conditions={}", "data.condition_dropout=0", "network=demanding"])


def test_a_label_without_example_and_guidance_without_null_are_refused(words: ModuleType) -> None:
    labelled = ["data.labels=true", "conditions={text: text, label: label}"]
    assert load_recipe(RECIPE, [*labelled, "sample.labels=[right]"]).sample.labels == ("right",)
    with pytest.raises(RecipeError, match=r"sample\.labels holds up, which no training example of data captioned has"):
        load_recipe(RECIPE, [*labelled, "sample.labels=[up]"])
    with pytest.raises(RecipeError, match="cfg calls the network without text, which condition_dropout 0 never trains"):
        load_recipe(RECIPE, [*labelled, "data.condition_dropout={label: 0.1}", "sample.guidance=[cfg]"])
    for option in ("names: [label]", "scales: {label: 3.0}", "negative: {text: up}"):
        guided = f"sample.guidance=[{{name: cfg, {option}}}]"
        found = load_recipe(RECIPE, [*labelled, "data.condition_dropout={label: 0.1}", guided])
        assert not [one for one in found.warnings if one.code == "DK123"]
    idle = "sample.guidance=[{name: cfg, scale: 1.0, negative: {text: up}}]"
    found = load_recipe(RECIPE, [*labelled, "data.condition_dropout=0.1", idle])
    assert [one for one in found.warnings if one.code == "DK123"]
    with pytest.raises(RecipeError, match="calls the network without text, which"):
        load_recipe(
            RECIPE,
            [
                *labelled,
                "data.condition_dropout={label: 0.1}",
                "sample.guidance=[{name: cfg, scales: {text: 3, label: 2}}]",
            ],
        )


def test_channels_of_concat_reach_the_network(words: ModuleType) -> None:
    sets = ["data.hint=true", "conditions={text: text, hint: concat}"]
    assembly = assemble(load_recipe(RECIPE, sets))
    assert assembly.shape.extra_channels == 2
    assert assembly.shape.conditions == {"text": (9, 64)}
    raw = assembly.data.split("train").rows(torch.arange(4))[1]  # type: ignore[attr-defined]
    cond = assembly.conditions(raw)
    assert torch.equal(cond["concat"], raw["hint"])
    y = assembly.network(torch.zeros(4, 2), torch.ones(4), **cond)
    assert not torch.equal(
        y, assembly.network(torch.zeros(4, 2), torch.ones(4), **assembly.conditions.without(cond, ["hint"]))
    )


def trainer(sets: list[str]) -> Trainer:
    return make_trainer(assemble(load_recipe(RECIPE, ["train.steps=8", *sets])), torch.device("cpu"))


@pytest.mark.parametrize("conditioner", ["{name: text, width: 16, heads: 2, depth: 1}", "frozen"])
def test_a_resumed_run_has_the_same_bits(words: ModuleType, conditioner: str) -> None:
    """The values of a frozen conditioner are kept, by text and not by batch."""
    sets = [f"conditions={{text: {conditioner}}}"]
    whole = trainer(sets)
    whole.run()
    first = trainer(sets)
    first.run(stop=lambda: first.step >= 3)
    second = trainer(sets)
    calls = words.Frozen.calls
    second.load(
        {group: {n: t.clone() for n, t in named.items()} for group, named in first.tensors().items()}, first.state()
    )
    second.run()
    assert (words.Frozen.calls - calls == 2) == (conditioner == "frozen")
    ours, theirs = whole.tensors(), second.tensors()
    assert ours.keys() == theirs.keys()
    assert {"components"} <= ours.keys()
    assert all(torch.equal(value, theirs[group][name]) for group in ours for name, value in ours[group].items())


def test_a_condition_that_was_never_dropped_is_not_guided_afterwards(words: ModuleType, tmp_path: Path) -> None:
    sets = ["data.labels=true", "conditions={text: text, label: label}", "data.condition_dropout={label: 0.1}"]
    assembly = assemble(load_recipe(RECIPE, [*sets, "train.steps=1"]))
    with pytest.raises(ArgumentError, match="cfg calls the network without text, which condition_dropout 0"):
        changed_guidance(assembly, {"cfg": 3.0})
    assert changed_guidance(assembly, {"cfg": {"scales": {"label": 3.0}}})
    (inner,) = changed_guidance(assembly, {"interval": {"inner": {"name": "cfg", "names": ["label"]}}})
    assert inner.inner.conditions is assembly.conditions


def test_a_guidance_inside_of_another_is_changed_where_it_stands() -> None:
    nested = assemble(load_recipe("digits-zero-snr"))
    rescale, clip = changed_guidance(nested, {"cfg": {"scale": 7.5, "negative": {"label": 3}}})
    assert (rescale.inner.scale, rescale.inner.negative, rescale.phi) == (7.5, {"label": 3}, 0.7)
    assert clip is nested.guidance[1]
    assert [type(one).__name__ for one in changed_guidance(nested, {"threshold": {}})][1:] == ["Rescale", "Clip"]
    plain = assemble(load_recipe("digits-zero-snr", ["sample.guidance=[clip, {name: cfg, scale: 3.0}]"]))
    clip, around = changed_guidance(plain, {"rescale": {"inner": "cfg", "phi": 0.5}, "cfg": {"names": ["label"]}})
    assert (around.phi, around.inner.scale, around.inner.names) == (0.5, 3.0, ("label",))
    clip, around = changed_guidance(plain, {"cfg": 4.0, "rescale": {"inner": {"name": "cfg", "scale": 5.0}}})
    assert around.inner.scale == 5.0


def test_a_negative_text_is_encoded_once_for_all_steps(words: ModuleType) -> None:
    assembly = assemble(load_recipe(RECIPE, ["conditions={text: frozen}"]))
    (cfg,) = changed_guidance(assembly, {"cfg": {"scale": 3.0, "negative": {"text": "a"}}})
    cond = assembly.conditions.stated({"text": "b"}, 2)
    guided, calls = cfg(assembly.model), words.Frozen.calls
    x = [guided(torch.ones(2, 2), assembly.schedule.level(t), **cond).x0 for t in (30.0, 20.0, 10.0)]
    assert words.Frozen.calls == calls + 1
    (other,) = changed_guidance(assembly, {"cfg": {"scale": 3.0, "negative": {"text": "b"}}})
    assert not torch.equal(other(assembly.model)(torch.ones(2, 2), assembly.schedule.level(30.0), **cond).x0, x[0])


def test_joint_dropout_drops_every_condition_of_an_example(words: ModuleType) -> None:
    sets = ["data.labels=true", "conditions={text: frozen, label: label}"]

    def dropped(share: str) -> torch.Tensor:
        one = trainer([*sets, f"data.condition_dropout={share}"])
        raw = one.engine.problem.data.split("train").rows(torch.arange(256))[1]  # type: ignore[attr-defined]
        from_seed = one.engine.preprocessing.train(torch.zeros(256, 2), raw, RandomStreams(0, 0, 256))[1]
        null = one.engine.preprocessing.conditions.without(from_seed)
        return torch.stack([from_seed["label"] == 3, (from_seed["text"] == null["text"]).flatten(1).all(1)])

    assert torch.equal(*dropped("{joint: 0.3}"))
    label, text = dropped("0.3")
    assert 0.2 < float(label.float().mean()) < 0.4
    assert 0.05 < float((label & text).float().mean()) < 0.14
    label, text = dropped("{text: 0.3}")
    assert not label.any()
    assert text.any()


def test_the_command_line_states_conditions(finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, texts, out = finished, tmp_path / "texts.txt", tmp_path / "x.npz"
    texts.write_text("left\nright\n")

    def sample(*arguments: str) -> str:
        """Return the error of a command, empty without one."""
        capsys.readouterr()
        code = main(["-P", str(PLUGIN), "sample", str(folder), "--count", "4", "--out", str(out), "-q", *arguments])
        configure()
        error = capsys.readouterr().err
        assert (code != 0) == bool(error)
        return error

    assert sample("--condition", f"text=@{texts}") == ""
    assert sides(torch.from_numpy(load_npz(out)["x"])) == [False, True, False, True]
    assert sample("--prompt", "right") == ""
    assert as_texts(torch.from_numpy(load_npz(out)["condition.text"])) == ["right"] * 4
    for option, value, told in (
        ("--condition", "txt=a", "this run has no condition txt"),
        ("--condition", "left", "'left' is not a condition"),
        ("--condition", "text=@nowhere.txt", "nowhere.txt cannot be read"),
        ("--condition", "text=@a.png", "does not fit this condition"),
        ("--guidance", "cfg", "'cfg' is not a guidance"),
        ("--guidance", "cgf=2", 'unknown guidance "cgf"'),
        ("--scale", "-1", "--> --scale:1:"),
        ("--guidance", "cfg.scal=2", "--> --guidance:1:"),
    ):
        assert told in sample(option, value)
    for options, told in (
        (("--prompt", "right", "--condition", "text=left"), "--prompt and --condition text are both given"),
        (("--scale", "4", "--guidance", "cfg=3"), "--scale and scale of --guidance cfg are both given"),
        (("--negative", "a", "--guidance", "cfg.negative=b"), "--negative and negative of --guidance cfg are both"),
        (("--scale", "nan"), "--scale is nan"),
    ):
        assert told in sample(*options)
    for options, count in ((), 64), (("--negative", "left"), 8), (("--prompt", "left"), 8):
        drawn = ["-P", str(PLUGIN), "sample", str(folder), "--out", str(out), "-q", "--steps", "1", *options]
        assert main(drawn) == 0
        configure()
        assert len(load_npz(out)["x"]) == count
    evaluated = ["-P", str(PLUGIN), "evaluate", str(folder), "--metric", "mmd", "-q", "--set", "methd=ode"]
    assert main(evaluated) == 3
    configure()
    assert "--> --set:1:7" in capsys.readouterr().err


def test_a_network_too_large_to_be_called_before_compute_is_named(
    words: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffkit.recipe.condition_checks.MAX_ZEROS", 0)
    (warning,) = load_recipe(RECIPE, ["network=stubborn"]).warnings
    assert "network stubborn runs only with its weights, so the shapes of its conditions, text" in warning.message


def test_a_picture_of_samples_has_their_conditions(tmp_path: Path) -> None:
    data = assemble(load_recipe("digits-conditional")).data
    save_png(tmp_path / "x.png", data, torch.zeros(2, 1, 8, 8), {"text": ["left", "grün"]})
    with Image.open(tmp_path / "x.png") as picture:
        assert json.loads(picture.info["conditions"]) == {"text": ["left", "grün"]}


@pytest.mark.slow
def test_a_conditioner_of_a_stranger_in_a_file_works_in_a_whole_run(tmp_path: Path) -> None:
    """Pictures are bright in summer: trained, sampled and guided by the command line, with 30 lines of a plugin."""
    plugin = Path(__file__).with_name("months_plugin.py")
    assert len([line for line in plugin.read_text(encoding="utf-8").splitlines() if line.strip()]) <= 30
    month = np.arange(240) % 12 + 1.0
    level = -np.cos(month * 2 * np.pi / 12)[:, None, None, None]
    noise = np.random.default_rng(0).standard_normal((240, 4, 4, 1))
    np.savez(tmp_path / "year.npz", images=(0.8 * level + 0.1 * noise).astype(np.float32), months=month)
    recipe = tmp_path / "year.yaml"
    recipe.write_text("""
name: year
data: {name: arrays, path: year.npz, layout: channels-last, conditions: {month: months}, condition_dropout: 0.1}
conditions: {month: month}
schedule: {name: linear, steps: 50, beta_start: 0.002, beta_end: 0.3}
parameterization: x0
network: {name: unet, channels: 8, multipliers: [1], blocks: 1, attention: []}
train: {steps: 120, batch_size: 16, optimizer: {name: adam, lr: 1.0e-2}, ema: {decay: 0.95, warmup: true}}
sample: {sampler: ancestral, steps: 10, count: 4, guidance: [{name: cfg, scale: 1.5}]}
""")
    run_, out = tmp_path / "run", tmp_path / "x.npz"
    arguments = ["--count", "8", "--out", str(out), "--condition", "month=6,12"]
    for command in (["run", str(recipe), "--out", str(run_)], ["sample", str(run_), *arguments]):
        assert main(["-P", str(plugin), *command, "-q", "--device", "cpu"]) == 0
        configure()
    summer, winter = (load_npz(out)["x"][first::2].mean() for first in (0, 1))
    assert summer > 0.3
    assert winter < -0.3
