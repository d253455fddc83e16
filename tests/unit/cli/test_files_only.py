"""Commands that list and print; pains 10, 21 and 23."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffkit.cli import doctor
from diffkit.cli.main import COMMANDS, cli, main

from .conftest import Diffkit

HEAVY = {"torch", "numpy", "sklearn", "scipy", "diffkit.level"}


def imported(code: str, folder: Path) -> set[str]:
    """Modules that a fresh process has after `code`."""
    script = f"{code}\nimport sys, json\nprint('\\n' + json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["ls"], ["plugins"], ["cp", "digits", "x.yaml"], ["cite", "digits"], ["ls", "sampler", "--json"]],
    ids=lambda a: a[0],
)
def test_listing_imports_neither_torch_nor_a_component(arguments: list[str], tmp_path: Path) -> None:
    """Pains 23."""
    found = imported(f"from diffkit.cli.main import main\nmain({arguments!r})", tmp_path)
    assert not found & HEAVY
    assert not {name for name in found if name.startswith(("diffkit.ddpm.s", "diffkit.basics.data"))}


def test_checkpoints_need_no_torch(finished: Path, tmp_path: Path) -> None:
    code = f"from diffkit.cli.main import main\nassert main(['checkpoints', {str(finished)!r}, '--verify']) == 0"
    assert "torch" not in imported(code, tmp_path)


def test_importing_diffkit_imports_no_torch(tmp_path: Path) -> None:
    assert not imported("import diffkit\nfrom diffkit import Entry, hookimpl", tmp_path) & HEAVY


def test_help_of_every_command_repeats_its_line_in_the_list(diffkit: Diffkit) -> None:
    listed = diffkit("--help").out
    for name, (_, text) in COMMANDS.items():
        assert name in listed
        said = diffkit(name, "--help")
        assert said.code == 0
        assert said.out.startswith(f"Usage: diffkit {name}")
        assert text.split()[0] in listed


def test_a_command_that_is_misspelt_gets_a_suggestion(diffkit: Diffkit) -> None:
    said = diffkit("validat")
    assert said.code == 2
    assert "validate" in said.err


def test_version(diffkit: Diffkit) -> None:
    assert diffkit("--version").out.startswith("diffkit, version 0.1")


def test_ls_shows_components_recipes_and_runs(diffkit: Diffkit, finished: Path) -> None:
    found = json.loads(diffkit("ls", "--json", "--runs", finished.parent).out)
    assert {"schedule", "sampler", "grid", "metric", "recipes", "runs"} <= set(found)
    assert "ancestral" in [row["name"] for row in found["sampler"]]
    assert {"digits", "mixture", "mnist", "cifar10-ddpm"} <= {row["name"] for row in found["recipes"]}
    (run,) = found["runs"]
    assert (run["name"], run["step"], run["report"]) == ("ring", "20", "yes")
    assert "sliced-wasserstein" in run["results"]
    assert "linear" in diffkit("ls", "schedule").out
    assert "ring" in diffkit("ls", "runs", "--runs", finished.parent).out


def test_ls_of_an_unknown_kind_names_the_kinds(diffkit: Diffkit) -> None:
    said = diffkit("ls", "scheduler")
    assert said.code == 2
    assert "schedule" in said.err


def test_show_tells_formula_options_and_source(diffkit: Diffkit) -> None:
    text = diffkit("show", "schedule", "linear").out
    assert "beta_t is linear in t" in text
    assert "arXiv:2006.11239" in text
    assert "beta_start" in text
    account = json.loads(diffkit("show", "sampler", "ancestral", "--json").out)
    assert account["options"][0]["name"] == "variance"
    assert diffkit("show", "schedule", "linaer").code == 3


def test_cp_starts_a_recipe_and_never_overwrites_unasked(diffkit: Diffkit, tmp_path: Path) -> None:
    target = tmp_path / "new" / "mine.yaml"
    assert diffkit("cp", "digits", target).code == 0
    assert target.read_text().splitlines().count("name: mine") == 1  # so that its runs have a place of their own
    target.write_text("precious")
    said = diffkit("cp", "digits", target)
    assert said.code == 2
    assert target.read_text() == "precious"
    assert diffkit("cp", "digits", target, "--force").code == 0
    assert target.read_text() != "precious"
    wrong = diffkit("cp", "digitz", target)
    assert wrong.code == 2
    assert 'did you mean "digits"?' in wrong.err


def test_plugins_lists_the_defaults_and_says_why(diffkit: Diffkit) -> None:
    found = {row["name"]: row for row in json.loads(diffkit("plugins", "--json").out)}
    assert found["ddpm"]["status"] == found["basics"]["status"] == "ok"
    assert "sampler/ancestral" in found["ddpm"]["entries"]
    assert "ddpm" in diffkit("plugins", "--why", "ddpm").out
    assert diffkit("plugins", "--why", "nothing").code == 4


@pytest.mark.parametrize("where", ["before", "after"])
def test_switches_hold_wherever_they_stand(diffkit: Diffkit, where: str) -> None:
    command = ["plugins", "--json"]
    switch = ["--plugins", "none"]
    said = diffkit(*(switch + command if where == "before" else command + switch))
    status = {row["name"]: row["status"] for row in json.loads(said.out)}
    assert status["ddpm"] == "ok"
    assert all(state == "off" for name, state in status.items() if name not in ("ddpm", "basics"))
    from diffkit.host import configure

    configure()


def test_a_switch_that_means_nothing_is_refused(diffkit: Diffkit) -> None:
    assert diffkit("ls", "-p", "edm").code == 2
    assert diffkit("ls", "--plugins").code == 2
    assert diffkit("-p", "no:nothing-of-this-name", "ls").code == 2
    from diffkit.host import configure

    configure()


def test_the_schedule_of_the_learning_rate_is_no_component(diffkit: Diffkit, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("train: {", "train: {schedule: {name: cosine}, "))
    said = diffkit("cite", recipe)
    assert said.code == 0
    assert "cosine" not in said.out


def test_cite_prints_the_papers_of_a_recipe(diffkit: Diffkit, recipe: Path) -> None:
    text = diffkit("cite", recipe).out
    assert "Denoising Diffusion Probabilistic Models" in text
    assert "schedule/linear" in text


def test_doctor_reports_versions_and_plugins(diffkit: Diffkit) -> None:
    found = {row["what"]: row for row in json.loads(diffkit("doctor", "--json").out)}
    assert {"python", "torch", "processor", "free disk", "plugin ddpm"} <= set(found)
    assert found["torch"]["problem"] is None


def test_doctor_says_what_is_missing_where_torch_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one tool that must work there."""
    real = doctor.metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise doctor.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "torch", None)
    found = {one.what: one.problem for one in doctor._hardware()}
    assert found["devices"] == "torch is not installed: pip install torch"


def test_validate_shows_every_fault_at_its_place(diffkit: Diffkit, recipe: Path) -> None:
    assert diffkit("validate", recipe).out.strip().endswith("valid")
    recipe.write_text(recipe.read_text().replace("linear", "linaer").replace("batch_size", "batchsize"))
    said = diffkit("validate", recipe)
    assert said.code == 3
    assert f"{recipe}:4" in said.err
    assert 'did you mean "linear"?' in said.err
    assert "batch_size" in said.err
    (record,) = json.loads(diffkit("validate", recipe, "--json").out)
    assert not record["valid"]
    assert {fault["line"] for fault in record["faults"]} == {4, 8}


def test_config_prints_the_whole_recipe_and_its_origins(diffkit: Diffkit, recipe: Path) -> None:
    plain = diffkit("config", recipe, "--set", "train.steps=7").out
    assert "steps: 7" in plain
    assert "# default" not in plain
    told = diffkit("config", recipe, "--set", "train.steps=7", "--origins").out
    assert "--set" in told
    assert "ring.yaml:3" in told
    assert "default" in told
    whole = json.loads(diffkit("config", recipe, "--json").out)
    assert whole["train.clip"] == {"value": 1.0, "origin": "default"}


def test_config_diff_shows_only_what_differs(diffkit: Diffkit, recipe: Path) -> None:
    said = diffkit("config", recipe, "--diff", recipe, "--set", "train.steps=7", "--set", "train.clip=null")
    assert sorted(said.out.split("\n")) == ["", "train.clip: 1.0 -> null", "train.steps: 20 -> 7"]
    assert "are equal" in diffkit("config", recipe, "--diff", recipe).out


def test_what_config_prints_is_a_recipe(diffkit: Diffkit, recipe: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.yaml"
    again.write_text(diffkit("config", recipe).out)
    assert "are equal" in diffkit("config", again, "--diff", recipe).out


def test_schema_is_written_for_editors(diffkit: Diffkit, tmp_path: Path) -> None:
    assert diffkit("schema", "--out", tmp_path / "schema.json").code == 0
    found = json.loads((tmp_path / "schema.json").read_text())
    assert found["$schema"].startswith("http://json-schema.org/draft-07")
    assert all("train" in task["properties"] for task in found["anyOf"])


def test_checkpoints_finds_a_flipped_bit(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(finished, tmp_path / "copy")
    assert "whole" in diffkit("checkpoints", copy, "--verify").out
    target = copy / "checkpoints" / "step-00000020" / "network.safetensors"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    said = diffkit("checkpoints", copy, "--verify")
    assert said.code == 8
    assert "damaged" in said.out
    rows = json.loads(diffkit("checkpoints", copy, "--json").out)
    assert [row["step"] for row in rows] == [20, 10]


def test_compare_puts_recipes_and_results_side_by_side(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    said = diffkit("run", finished.parent / "ring.yaml", "--out", other, "--set", "train.steps=5", "-q")
    assert said.code == 0
    found = json.loads(diffkit("compare", finished, other, "--json").out)
    assert found["recipes"] == {"train.steps": [20, 5]}
    assert len(found["results"]["sliced-wasserstein.sliced_wasserstein"]) == 2
    assert all(seconds > 0 for seconds in found["results"]["seconds.train"])
    assert found["unlike"] == {}
    assert found["results"]["loss.training"][0] != found["results"]["loss.training"][1]
    stages = [json.loads((run / "stages.json").read_text())["train"] for run in (finished, other)]
    assert found["results"]["loss.held_out"] == [stage["held_out_loss"] for stage in stages]
    assert "train.steps" in diffkit("compare", finished, other).out


def test_compare_marks_results_that_cannot_be_compared(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    """It names what differs, and writes a page with the loss curves."""
    other = shutil.copytree(finished, tmp_path / "other")
    record = json.loads((other / "results.json").read_text())
    record["metrics"]["sliced-wasserstein"] |= {"weights": "raw", "drawn": 12}
    (other / "results.json").write_text(json.dumps(record))
    page = tmp_path / "<b>.html"
    said = diffkit("compare", finished, other, "--html", page)
    assert said.code == 0, said.err
    sentence = "not comparable: sliced-wasserstein differs in weights: ema, raw; count: 16, 12"
    assert f"* {sentence}" in said.out
    assert "sliced-wasserstein.sliced_wasserstein *" in said.out
    assert str(page) in said.out
    html = page.read_text()
    assert sentence.removeprefix("not comparable: ") in html
    assert "Training loss" in html
    assert "<script src" not in html
    said = diffkit("compare", finished, other, "--html", tmp_path / "missing" / "a.html")
    assert (said.code, "cannot write" in said.err) == (6, True)


def test_compare_refuses_values_of_another_protocol(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    """A distance in features of other weights is another number; the record states which field differs."""
    other = shutil.copytree(finished, tmp_path / "other")
    for run, weights in ((finished, "5793"), (other, "91ab")):
        copy = shutil.copytree(run, tmp_path / weights)
        record = json.loads((copy / "results.json").read_text())
        record["metrics"]["sliced-wasserstein"]["protocol"] = {
            "extractor": "inception-v3",
            "extractor weights": weights,
        }
        (copy / "results.json").write_text(json.dumps(record))
    said = diffkit("compare", tmp_path / "5793", tmp_path / "91ab")
    sentence = "sliced-wasserstein differs in extractor weights: 5793, 91ab; its values are left out"
    assert f"* not comparable: {sentence}" in said.out
    assert "sliced-wasserstein.sliced_wasserstein" not in said.out
    found = json.loads(diffkit("compare", tmp_path / "5793", finished, "--json").out)
    assert found["unlike"]["sliced-wasserstein"] == {
        "extractor": ["inception-v3", None],
        "extractor weights": ["5793", None],
    }
    assert not [name for name in found["results"] if name.startswith("sliced")]


def test_one_damaged_run_breaks_neither_list_nor_report(diffkit: Diffkit, finished: Path, tmp_path: Path) -> None:
    """C19: each file is named, and the rest is shown."""
    shutil.copytree(finished, tmp_path / "runs" / "good")
    bad = shutil.copytree(finished, tmp_path / "runs" / "bad")
    (bad / "results.json").write_text('{"metrics": {"m": {"headline": 3}}}')
    (bad / "stages.json").write_text('{"train": {"step": 20, "loss_by_level": {"level": [1.0], "loss": [1.0, 2.0]}}}')
    (bad / "environment.json").write_text('{"hardware": [], "threads": 3}')
    (bad / "samples" / "samples.npz").write_bytes(b"PK")
    (bad / "samples" / "trajectory.npz").unlink()
    os.mkfifo(bad / "samples" / "trajectory.npz")
    (bad / "samples" / "step-00000010.npz").mkdir()
    (bad / "events.jsonl").unlink()
    os.mkfifo(bad / "events.jsonl")
    said = diffkit("ls", "runs", "--runs", tmp_path / "runs", "--json")
    rows = {row["name"]: row for row in json.loads(said.out)["runs"]}
    assert "damaged" in rows["bad"]["results"]
    assert rows["good"]["results"].startswith("sliced-wasserstein")
    said = diffkit("report", bad)
    assert said.code == 0, said.err
    page = (bad / "report.html").read_text()
    for name in ("samples.npz", "trajectory.npz", "step-00000010.npz", "events.jsonl", "results.json", "stages.json"):
        assert name in page, name
    assert "Not in this report" in page
    (bad / "effective.yaml").write_text("- 3")
    for command in (("report", bad), ("sample", bad)):
        said = diffkit(*command)
        assert said.code in (2, 3, 8), said.err
        assert "bug" not in said.err
    said = diffkit("compare", bad, finished)
    assert said.code == 0, said.err
    assert "results.json is damaged" in said.err


def test_a_bug_is_reported_whole_and_kept(
    diffkit: Diffkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setenv("DIFFKIT_CRASH_DIR", str(tmp_path))
    monkeypatch.setattr("diffkit.runs.pipeline.assemble_parts", broken)
    said = diffkit("run", recipe, "--out", tmp_path / "a")
    assert said.code == 1
    assert "a bug of ours" in (tmp_path / "crash.txt").read_text()
    assert "Traceback" in said.err


def test_a_bug_outside_a_run_leaves_no_file(
    diffkit: Diffkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, finished: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffkit.runs.listing.compare_runs", broken)
    assert diffkit("compare", finished).code == 1
    assert list(tmp_path.iterdir()) == []


def test_ordinary_errors_of_places_are_no_bugs(
    diffkit: Diffkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, finished: Path
) -> None:
    """D20: each names the place and a fix, with exit code 2, 5 or 6."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    long, file = "x" * 300, tmp_path / "file"
    file.touch()
    cases: list[tuple[object, ...]] = [(command, tmp_path / long) for command in ("sample", "report", "compare")]
    cases += [("sample", tmp_path / long / "run"), ("compare", copy, "--html", tmp_path / long)]
    cases += [("sample", copy, "--out", target) for target in (f"{long}.npz", "/dev/full/a.npz", file / "a.npz")]
    cases += [("sample", copy, "--count", "1", "--weights", "raw", "--out", "/proc/a.npz")]
    (tmp_path / "gone").mkdir()
    for case in cases:
        said = diffkit(*case)  # type: ignore[arg-type]
        assert said.code in (2, 5, 6), (case, said.err)
        assert "fix:" in said.err
        assert "bug" not in said.err
    labels = ",".join(["0"] * 300)
    assert diffkit("sample", copy, "--labels", labels).code == 2
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for case in (("report", "copy"), ("compare", "."), ("sample", copy, "--out", "a.npz"), ("run", "digits")):
        said = diffkit(*case)
        assert said.code in (2, 5, 6), (case, said.err)
        assert "bug" not in said.err


def test_a_bug_in_a_stage_is_kept_in_the_run_directory(
    diffkit: Diffkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr("diffkit.runs.pipeline.train", broken)
    assert diffkit("run", recipe, "--out", tmp_path / "a").code == 1
    assert "a bug of ours" in (tmp_path / "a" / "crash.txt").read_text()
    assert '"event": "bug"' in (tmp_path / "a" / "events.jsonl").read_text()


def test_a_mistake_shows_no_traceback_unless_asked(diffkit: Diffkit, tmp_path: Path) -> None:
    said = diffkit("run", tmp_path / "nothing.yaml")
    assert said.code == 3
    assert "Traceback" not in said.err
    assert "Traceback" in diffkit("run", tmp_path / "nothing.yaml", "-v").err


def test_a_plugin_may_add_a_command(diffkit: Diffkit, tmp_path: Path) -> None:
    from diffkit.host import configure, load_file

    plugin = tmp_path / "greeting.py"
    plugin.write_text(
        "import click\nfrom diffkit import hookimpl\n\n\n@hookimpl\ndef diffkit_commands(group):\n"
        "    @group.command()\n    def greet():\n        'Say hello.'\n        click.echo('hello')\n"
    )
    load_file(plugin)
    try:
        vars(cli).pop("_plugin_commands", None)
        assert main(["greet"]) == 0
        assert "Say hello." in diffkit("--help").out
    finally:
        vars(cli).pop("_plugin_commands", None)
        configure()


def test_completion_of_commands_needs_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os\nos.environ.update(_DIFFKIT_COMPLETE='bash_complete', COMP_WORDS='diffkit val', COMP_CWORD='1')\n"
        "from diffkit.cli.main import cli\n"
        "try:\n    cli.main([], prog_name='diffkit')\nexcept SystemExit:\n    pass"
    )
    assert not imported(code, tmp_path) & HEAVY


@pytest.mark.parametrize("options", ["name: images", "name: images, size: 8", "name: mnist"])
def test_validate_warns_of_data_that_cannot_be_read(diffkit: Diffkit, recipe: Path, options: str) -> None:
    """Also if the shape of an example is known without them."""
    data = next(line for line in recipe.read_text().splitlines() if line.startswith("data:"))
    text = recipe.read_text().replace(data, f"data: {{{options}, path: nowhere}}")
    recipe.write_text(
        text.replace("{name: mlp, width: 16, depth: 1}", "{name: unet, channels: 8, multipliers: [1], attention: []}")
    )
    said = diffkit("validate", recipe)
    assert said.code == 0
    assert "warning[DK301] the folder of" in said.err
    assert "name the folder: data.path" in said.err.replace("name a folder", "name the folder")


def test_a_network_of_too_many_weights_is_refused_at_its_option(diffkit: Diffkit) -> None:
    said = diffkit("validate", "digits", "--set", "network.blocks=1000")
    assert said.code == 3
    assert "more than 2500 weight tensors; use fewer blocks" in said.err
    assert "network.blocks" in said.err
    assert "network.attention" not in said.err
