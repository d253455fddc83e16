"""`run`, `sample`, `evaluate` and `report`, on a run of a second."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from diffkit.cli.stated import drawn_name, named_files
from diffkit.host import configure

from .conftest import RECIPE, Diffkit


def test_a_run_leaves_what_the_design_lists(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    expected = {"recipe.yaml", "effective.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "checkpoints"}
    assert expected | {"samples", "results.json", "report.html", "LOCK"} <= names
    assert (finished / "recipe.yaml").read_text() == RECIPE
    steps = [json.loads(line)["step"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert steps == [10, 20]
    files = {path.name for path in (finished / "checkpoints" / "step-00000020").iterdir()}
    assert {"network.safetensors", "optimizer.safetensors", "state.json", "manifest.json"} <= files
    record = json.loads((finished / "results.json").read_text())["metrics"]["sliced-wasserstein"]
    assert record["samples"] == 16
    assert record["nfe"] == 3
    assert record["headline"] in record["values"]
    assert record["held_out"][record["headline"]] > 0
    assert record["values"][record["headline"]] > 0


def test_a_finished_run_is_left_as_it_is(diffkit: Diffkit, finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != "LOCK"}
    said = diffkit("run", finished.parent / "ring.yaml", "--out", finished, "--device", "cpu")
    assert said.code == 0
    assert "is finished. To start over" in said.err
    touched = {p.name for p, at in before.items() if p.stat().st_mtime_ns != at}
    assert touched <= {"environment.json"}


def test_the_terminal_shows_what_is_run_and_what_is_written(diffkit: Diffkit, tmp_path: Path, recipe: Path) -> None:
    said = diffkit("run", recipe, "--out", tmp_path / "a", "--set", "train.sample_every=10", "--device", "cpu")
    assert said.code == 0, said.err
    rest = said.err.splitlines()
    assert [one for one in rest if one.startswith("ring: cpu, fp32, ") and one.endswith(f", in {tmp_path / 'a'}")]
    assert "samples after step 10: samples/step-00000010.npz" in rest
    assert any(line.startswith("sampling 8/8") for line in rest), said.err
    assert f"samples: {tmp_path / 'a' / 'samples' / 'samples.npz'}" in rest


def test_a_resumed_run_names_its_step_and_a_stop_is_no_error(
    diffkit: Diffkit, tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("run", recipe, "--out", tmp_path / "a", "--device", "cpu")
    with monkeypatch.context() as patched:
        patched.setattr("diffkit.runs.pipeline.StopSignals.requested", True)
        said = diffkit(*command)
    assert said.code == 75
    assert "error[" not in said.err
    assert "a checkpoint is saved; run the same command again to continue" in said.err
    assert re.search(r"^resumed at step \d+$", diffkit(*command).err, re.MULTILINE)


def test_a_longer_run_continues_instead_of_starting_again(diffkit: Diffkit, tmp_path: Path, recipe: Path) -> None:
    """Stage-wise continuation: without its later stages a run goes on with them, and trains nothing again."""
    assert diffkit("run", recipe, "--out", tmp_path / "a", "-q").code == 0
    (tmp_path / "a" / "report.html").unlink()
    (tmp_path / "a" / "stages.json").write_text("{}")
    metrics = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert diffkit("run", recipe, "--out", tmp_path / "a", "-q").code == 0
    assert (tmp_path / "a" / "report.html").is_file()
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == metrics


def test_a_changed_recipe_is_refused_with_the_difference(diffkit: Diffkit, finished: Path) -> None:
    said = diffkit("run", finished.parent / "ring.yaml", "--out", finished, "--set", "network.width=8")
    assert said.code == 3
    assert "network.width" in said.err
    assert "--resume never" in said.err


def test_a_finished_run_goes_on(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    """B12: what does not change the meaning of the training continues, and is an event that the report shows."""
    copy = shutil.copytree(finished, tmp_path / "a")
    given = ("run", finished.parent / "ring.yaml", "--out", copy, "--device", "cpu", "--set")

    def events() -> list[dict[str, object]]:
        return [json.loads(line) for line in (copy / "events.jsonl").read_text().splitlines()]

    said = diffkit(*given, "train.steps=30", "--set", "train.optimizer.lr=1.0e-5")
    assert said.code == 0, said.err
    assert "the run continues with train.steps: 20 -> 30" in said.err
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["lr"]) for row in rows] == [(10, 1e-3), (20, 1e-3), (30, 1e-5)]
    assert [event["step"] for event in events() if event["event"] == "resume"] == [20]
    assert json.loads((copy / "results.json").read_text())["metrics"]["sliced-wasserstein"]["step"] == 30
    assert "recipe-changed" in (copy / "report.html").read_text()
    for option in ("sample.count=5", "train.keep=5", "train.log_every=1", "train.batch_size=16"):
        assert diffkit(*given, option, "-q").code == 0  # train.steps is 20 again, and 30 are done
    assert np.load(copy / "samples" / "samples.npz")["x"].shape == (8, 2)
    assert diffkit(*given, "sample.count=5", "-q").code == 0
    assert np.load(copy / "samples" / "samples.npz")["x"].shape == (5, 2)
    assert {path.name for path in (copy / "checkpoints").iterdir()} >= {"step-00000030"}
    assert len([event for event in events() if event["event"] == "resume"]) == 1
    for option in ("seed=1", "network.width=8", "parameterization=x0", "schedule.steps=60", "data.count=300"):
        said = diffkit(*given, option)
        assert (said.code, option.partition("=")[0] in said.err) == (3, True)


def test_never_keeps_the_old_run_under_another_name(diffkit: Diffkit, tmp_path: Path, recipe: Path) -> None:
    arguments = ("run", recipe, "--out", tmp_path / "a", "-q", "--set", "train.steps=5")
    assert diffkit(*arguments).code == 0
    assert diffkit(*arguments, "--set", "train.steps=6", "--resume", "never").code == 0
    assert (tmp_path / "a.1" / "report.html").is_file()
    assert (tmp_path / "a" / "checkpoints" / "step-00000006").is_dir()


def test_must_needs_something_to_resume(diffkit: Diffkit, tmp_path: Path, recipe: Path) -> None:
    assert diffkit("run", recipe, "--out", tmp_path / "a", "--resume", "must").code == 8
    assert not (tmp_path / "a").exists()


def test_the_seed_option_is_an_override(diffkit: Diffkit, tmp_path: Path, recipe: Path) -> None:
    short = ("--set", "train.steps=2", "-q")
    for name, seed in (("a", 1), ("b", 2), ("c", 1)):
        assert diffkit("run", recipe, "--out", tmp_path / name, "--seed", str(seed), *short).code == 0
    one, two, same = (np.load(tmp_path / name / "samples" / "samples.npz")["x"] for name in "abc")
    assert not np.array_equal(one, two)
    assert np.array_equal(one, same)


def test_sample_writes_numbers_and_the_same_ones_for_a_seed(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    for name, options in {"a": (), "b": ("--steps", "7"), "c": ("--weights", "raw"), "d": ("--seed", "1")}.items():
        said = diffkit(
            "sample", finished, "--count", "6", "--format", "npz", "--out", tmp_path / f"{name}.npz", *options
        )
        assert said.code == 0, said.err
    drawn = {name: np.load(tmp_path / f"{name}.npz")["x"] for name in "abcd"}
    assert drawn["a"].shape == (6, 2)
    for other in "bcd":
        assert not np.array_equal(drawn["a"], drawn[other]), f"the option of {other} did nothing"
    diffkit("sample", finished, "--count", "9", "--format", "npz", "--out", tmp_path / "e.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "e.npz")["x"][:6], drawn["a"])


def test_sample_takes_another_sampler_with_options(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    for variance in ("small", "large"):
        out = tmp_path / f"{variance}.npz"
        said = diffkit(
            "sample", finished, "--sampler", f"ancestral,variance={variance}", "--format", "npz", "--out", out
        )
        assert said.code == 0, said.err
    assert not np.array_equal(np.load(tmp_path / "small.npz")["x"], np.load(tmp_path / "large.npz")["x"])
    assert diffkit("sample", finished, "--sampler", "ancestrel").code == 3
    assert diffkit("sample", finished, "--grid", "quadratic", "--format", "npz", "--out", tmp_path / "q.npz").code == 0


def test_points_are_no_picture(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    """They are numbers by default; a picture of them is refused before anything is drawn."""
    for options in (("--format", "png"), ("--out", tmp_path / "a.png")):
        said = diffkit("sample", finished, *options)
        assert said.code == 2
        assert "DK016" in said.err
        assert "sampling" not in said.err
    said = diffkit("sample", finished, "--format", "png", "--out", tmp_path / "a.npz")
    assert "disagree" in said.err
    assert diffkit("sample", finished, "--count", "2", "--out", tmp_path / "a.NPZ").code == 0
    assert np.load(tmp_path / "a.NPZ")["x"].shape == (2, 2)


def test_samples_drawn_otherwise_have_another_name(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    choices: list[tuple[str, ...]] = [(), ("--sampler", "ancestral,variance=large"), ("--steps", "3")]
    choices += [("--grid", "quadratic"), ("--weights", "raw"), ("--seed", "1")]
    for options in choices:
        assert diffkit("sample", copy, "--count", "2", *options).code == 0
    drawn = {path.name for path in (copy / "samples").glob("drawn-*.npz")}
    assert len(drawn) == len(choices)
    assert {"drawn-ema-seed0.npz", "drawn-ema-ancestral-variance=large-seed0.npz"} <= drawn


def test_names_of_samples_differ_where_what_they_are_drawn_from_does(tmp_path: Path) -> None:
    """Texts with characters that a name cannot hold, and files of one name or of another content."""
    files = [tmp_path / folder / "cat.png" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text(file.parent.name)
    texts = ["a red cat", "a red-cat", "a red cat!", "a red cat?", "a  red cat", "cat" * 80, f"{'cat' * 80}s"]
    names = [drawn_name(["ema"], [text], [], 0) for text in texts]
    names += [drawn_name(["ema", file.stem], [], [file], 0) for file in (*files, tmp_path / "cat.png")]
    files[0].write_text("c")
    names.append(drawn_name(["ema", files[0].stem], [], [files[0]], 0))
    assert len(set(names)) == len(names)
    assert names[0] == "drawn-ema-a-red-cat-seed0"
    assert names[-1] != drawn_name(["ema", files[0].stem], [], [files[0]], 1)
    assert all(re.fullmatch(r"[\w.=+-]{1,170}", name) for name in names)
    lora = tmp_path / "style.safetensors"
    lora.touch()
    assert named_files(["x=@a.txt", "text=cat"], [f"{lora}:0.5", str(lora)]) == [Path("a.txt"), lora, lora]


def test_pictures_of_another_folder_do_not_overwrite_samples(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "start.npz", latents=np.full((2, 2), float(ord(folder)), np.float32))
        said = diffkit("sample", copy, "--latents", tmp_path / folder / "start.npz", "--format", "npz")
        assert said.code == 0, said.err
    drawn = list((copy / "samples").glob("drawn-ema-start-seed0-*.npz"))
    assert len(drawn) == 2


def test_classes_that_are_not_there(diffkit: Diffkit, finished: Path) -> None:
    said = diffkit("sample", finished, "--labels", "0,1")
    assert said.code == 2
    assert "no classes" in said.err
    assert "fix: leave labels out" in said.err


def test_unknown_weights_name_the_choices(diffkit: Diffkit, finished: Path) -> None:
    said = diffkit("sample", finished, "--weights", "emma", "--format", "npz")
    assert said.code == 2
    assert "raw, ema" in said.err


def test_evaluate_adds_a_metric_to_the_results(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    said = diffkit("evaluate", copy, "--metric", "mmd", "--count", "12", "--steps", "4", "--json")
    assert said.code == 0, said.err
    metrics = json.loads(said.out)["metrics"]
    assert metrics["mmd"]["samples"] == 12
    assert metrics["mmd"]["nfe"] == 4
    assert set(json.loads((copy / "results.json").read_text())["metrics"]) == {"mmd", "sliced-wasserstein"}


def test_report_writes_the_page_again(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "report.html").unlink()
    assert diffkit("report", copy).code == 0
    page = (copy / "report.html").read_text()
    assert "ring" in page
    assert "sliced-wasserstein" in page


def test_a_directory_that_is_no_run_is_refused(diffkit: Diffkit, tmp_path: Path) -> None:
    for command in ("sample", "evaluate", "report", "checkpoints"):
        said = diffkit(command, tmp_path)
        assert said.code == 2
        assert "not a run directory" in said.err


def test_an_unknown_device_is_refused(diffkit: Diffkit, tmp_path: Path, recipe: Path) -> None:
    assert diffkit("run", recipe, "--out", tmp_path / "a", "--device", "tpu").code == 2
    assert not (tmp_path / "a").exists()


@pytest.mark.filterwarnings("always:.* has changed since")
def test_a_one_file_plugin_is_used_by_explicit_flag_only(diffkit: Diffkit, tmp_path: Path, recipe: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from diffkit import Entry, hookimpl\n\n\n"
        "@hookimpl\n"
        "def diffkit_components():\n"
        '    yield Entry("weighting", "flat", "mine:Flat", "one everywhere")\n\n\n'
        "def __getattr__(name):\n"
        "    from diffkit import Weighting\n\n"
        '    if name != "Flat":\n'
        "        raise AttributeError(name)\n\n"
        "    @dataclass(frozen=True)\n"
        "    class Flat(Weighting):\n"
        "        def __call__(self, level):\n"
        "            return 1.0\n\n"
        "    globals()[name] = Flat\n"
        "    return Flat\n"
    )
    options = ("--set", "objective.weighting=flat", "--set", "train.steps=2", "--out", tmp_path / "a", "-q")
    assert diffkit("run", recipe, *options).code == 3
    said = diffkit("run", "-P", plugin, recipe, *options)
    assert said.code == 0, said.err
    assert diffkit("ls", "-P").code == 2
    for command in (
        ("-P", plugin, "sample", tmp_path / "a", "--count", "2", "-q"),
        ("validate", recipe, "--set", "objective.weighting=flat", f"-P{plugin}"),
        ("show", "weighting", "flat", f"-P={plugin}"),
    ):
        configure()  # each command line is a process of its own
        assert diffkit(*[word for word in command if str(plugin) not in str(word) and word != "-P"]).code != 0
        assert diffkit(*command).code == 0
    copy = tmp_path / "a" / "plugins" / "mine.py"
    assert copy.read_text() == plugin.read_text()
    configure()
    said = diffkit("sample", tmp_path / "a", "--count", "2")
    assert (said.code, "DK207" in said.err, str(copy) in said.err) == (4, True, True)
    assert diffkit("sample", tmp_path / "a", "--count", "2", "-P", copy).code == 0
    configure()
    plugin.write_text(plugin.read_text() + "# changed\n")
    said = diffkit("sample", tmp_path / "a", "--count", "2", "-P", plugin)
    assert said.code == 0
    assert "has changed since" in said.err


@pytest.mark.parametrize("field", ["parameters", "memory", "FLOPs per image", "images per second", "time", "disk"])
def test_a_dry_run_estimates_and_writes_nothing(diffkit: Diffkit, tmp_path: Path, recipe: Path, field: str) -> None:
    said = diffkit("run", recipe, "--out", tmp_path / "a", "--dry-run", "--json")
    assert said.code == 0, said.err
    assert field in json.loads(said.out)
    assert not (tmp_path / "a").exists()


def test_compare_leaves_out_damaged_files_by_name(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(finished, tmp_path / "damaged"))
    (damaged / "results.json").write_text("{")
    (damaged / "stages.json").write_text("[]")
    said = diffkit("compare", finished, damaged, "--html", tmp_path / "both.html")
    assert said.code == 0, said.err
    assert f"warning: left out: {damaged}/results.json is not valid JSON" in said.err
    assert f"warning: left out: {damaged}/stages.json is not a JSON object" in said.err
    assert "sliced-wasserstein" in said.out
    assert "Left out: " in (tmp_path / "both.html").read_text()
    (damaged / "effective.yaml").write_bytes(b"\xff")
    shown = json.loads(diffkit("compare", finished, finished, damaged, "--json").out)
    assert len(shown["damaged"]) == 3
    assert shown["recipes"] == {}
