"""Where recipes come from, and what loading may cost and import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from diffkit import load_recipe
from diffkit.errors import RecipeError
from diffkit.recipe.effective import recipe_hash
from diffkit.recipe.yaml import MAX_BYTES


def test_sources_are_equal(base: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("\ufeff" + base)
    mapping = {
        "name": "points",
        "data": "points",
        "schedule": {"name": "linear", "steps": 10, "beta_start": 0.1, "beta_end": 0.6},
        "parameterization": "eps",
        "network": PurePosixPath("tiny"),
        "train": {"steps": 100, "batch_size": 8},
        "sample": {"sampler": "ancestral", "count": 4, "guidance": ()},
    }
    recipes = [load_recipe(source) for source in (base, file, str(file), mapping)]
    assert len({recipe_hash(recipe) for recipe in recipes}) == 1
    assert recipes[0].text == base
    assert recipes[1].root is not None
    assert recipes[1].root.mark.file == str(file)


def test_recipes_are_frozen(base: str) -> None:
    with pytest.raises(ValueError):
        load_recipe(base).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("source", ["nowhere.yaml", "digit", "", "."])
def test_no_such_recipe(source: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source)
    assert (caught.value.code, caught.value.exit_code) == ("DK109", 3)


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("digitz")
    assert caught.value.hint == 'did you mean "digits"?'


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\xff\xfe\x00", "DK101"),
        (b"name: \xe9\n", "DK101"),
        (b"#" * (MAX_BYTES + 1), "DK101"),
        (b"- a\n- b\n", "DK101"),
    ],
    ids=range(4),
)
def test_files_that_are_no_recipes(tmp_path: Path, content: bytes, code: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert caught.value.code == code
    assert caught.value.render()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"x", 1j, 10**30])
def test_mappings_that_are_no_recipes(value: object) -> None:
    with pytest.raises(RecipeError):
        load_recipe({"name": "a", "seed": value})


def test_an_empty_recipe_says_all_that_is_missing() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({})
    missing = {fault.message for fault in caught.value.errors}
    assert missing == {
        f"{key} is missing" for key in ("name", "data", "schedule", "parameterization", "network", "train")
    }


@pytest.mark.parametrize("name", ["../../x", "a/b", ".x", "", "a" * 65, "a\nb"])
def test_names_that_become_paths(base: str, name: str) -> None:
    """reliability.md row 23."""
    with pytest.raises(RecipeError):
        load_recipe({"name": name, "data": "points"})


def test_nothing_in_a_recipe_is_interpolated_or_imported(base: str) -> None:
    """reliability.md finding 1: a string in data is never code."""
    for word in (
        "os:system",
        "${oc.env:HOME}",
        "diffkit.ddpm.schedule:Linear",
        "!!python/name:os.system",
        "__import__('os')",
    ):
        with pytest.raises(RecipeError):
            load_recipe(base.replace("name: linear", f"name: {word!r}"))
    assert load_recipe(base, ["train.init=${HOME}"]).train.init == "${HOME}"


def _python(code: str) -> str:
    environment = {**os.environ, "DIFFKIT_PLUGINS": "none"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


def test_reading_and_listing_import_no_torch(tmp_path: Path, base: str) -> None:
    """pains 23."""
    file = tmp_path / "r.yaml"
    file.write_text(base)
    code = f"""
import sys, diffkit
from diffkit.recipe.contents import entries, named
from diffkit.recipe.load import read
read({str(file)!r}, ["seed=1"]); named({str(file)!r}); entries()
print("torch" in sys.modules, any(m.startswith("diffkit.ddpm.") and m != "diffkit.ddpm.plugin" for m in sys.modules))
"""
    assert _python(code) == "False False"


def test_validation_imports_only_what_a_recipe_names() -> None:
    code = """
import sys, diffkit
diffkit.load_recipe("name: a\\ndata: {name: gaussian, mean: [0]}\\nschedule: linear\\nparameterization: eps\\n"
                    "network: {name: oracle}\\ntrain: {steps: 0}\\n")
others = ("diffkit.ddpm.unet", "diffkit.basics.data.images", "diffkit.basics.metrics.mmd")
print([name for name in others if name in sys.modules])
"""
    assert _python(code) == "[]"


def test_required_plugins(base: str) -> None:
    assert load_recipe(base, ["requires={diffkit: '>=0.1', ddpm: '<100'}"])
    cases = {"{diffkit: '>=99'}": 4, "{diffkit-edmm: '>=0.1'}": 4, "{diffkit: newest}": 3, "{diffkit: 1}": 3}
    for text, status in cases.items():
        with pytest.raises(RecipeError) as caught:
            load_recipe(base, [f"requires={text}"])
        assert caught.value.exit_code == status, text
