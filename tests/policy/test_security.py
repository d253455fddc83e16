"""SECURITY.md states what diffkit trusts: each statement has tests, the limits are those of the code."""

from __future__ import annotations

import ast
import re

import pytest

from diffkit.recipe.yaml import MAX_BYTES, MAX_DEPTH, MAX_NODES
from diffkit.storage.atomic import MAX_JSON_VALUES, MAX_RECORD_VALUES
from diffkit.storage.jsonl import MAX_LOG_BYTES
from diffkit.storage.manifest import MAX_STATE_BYTES
from diffkit.storage.run_directory import RUN_NAME

from .sources import ROOT, shipped

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
STATEMENTS = [
    " ".join(text.split())
    for text in re.split(
        r"\n+- |\n\n", TEXT.partition("## Trusted code and untrusted data\n")[2].partition("## Rep")[0]
    )
    if text.strip()
]
TESTS = {
    "**Install plugins only from authors": ["tests/unit/host/test_side_effects.py"],
    "**Everything else is data": [
        "tests/faults/test_hostile_recipes.py::test_hostile_recipes_cause_an_error_and_nothing_else",
        "tests/faults/test_hostile_checkpoints.py::test_a_hostile_checkpoint_is_an_error_and_nothing_more",
        "tests/faults/test_hostile_data.py::test_hostile_data_is_refused_by_name",
        "tests/faults/test_hostile_runs.py::test_hostile_runs_are_named",
    ],
    "a recipe contains names": [
        "tests/faults/test_hostile_recipes.py::test_hostile_recipes_cause_an_error_and_nothing_else",
        "tests/policy/test_source.py::test_texts_are_imported_in_few_places_only",
    ],
    "YAML is read by": [
        "tests/unit/recipe/test_yaml.py::test_refused",
        "tests/unit/recipe/test_yaml.py::test_an_alias_bomb_is_refused_at_once",
        "tests/unit/recipe/test_yaml.py::test_the_depth_allowed_is_read",
    ],
    "texts of files, plugins and the command line": [
        "tests/unit/cli/test_hostile_text.py",
        "tests/unit/cli/test_console.py",
        "tests/policy/test_security.py::test_what_is_printed_is_escaped",
    ],
    "a checkpoint is safetensors and JSON": [
        "tests/policy/test_source.py::test_no_data_becomes_code",
        "plugins/diffkit-diffusers/tests/test_openai.py::test_hostile_checkpoints_are_refused_and_do_nothing",
        "plugins/diffkit-diffusers/tests/test_openai.py::test_the_worker_may_start_no_process_and_use_no_more_memory",
        "plugins/diffkit-fidelity/tests/test_fidelity.py::test_other_weights_in_the_package_are_refused",
    ],
    "`diffkit import` of Stable Diffusion": [
        "plugins/diffkit-stable-diffusion/tests/test_folder.py::test_what_is_refused",
        "plugins/diffkit-stable-diffusion/tests/test_lora.py::test_files_that_do_not_fit_are_refused",
        "plugins/diffkit-diffusers/tests/test_vae.py::test_every_form_of_safetensors_is_read_and_no_pickle",
    ],
    "a JSON file of a run is refused": [
        "tests/faults/test_hostile_runs.py::test_all_hostile_runs_within_limits",
        "tests/unit/storage/test_jsonl.py::test_a_long_log_is_thinned_and_a_long_line_skipped",
        "tests/unit/storage/test_jsonl.py::test_pipes_and_directories_in_place_of_a_log_are_named",
        "tests/unit/storage/test_run_directory.py::test_pipes_in_place_of_files_are_named",
    ],
    "the commit of a run": ["tests/unit/runtime/test_environment.py::test_a_hostile_repository_executes_nothing"],
    "sizes, hashes and shapes": [
        "tests/faults/test_corruption.py::test_sampled_damage_is_detected",
        "tests/faults/test_hostile_checkpoints.py::test_a_hostile_checkpoint_is_an_error_and_nothing_more",
    ],
    "names that become paths": [
        "tests/unit/storage/test_run_directory.py::test_names_that_are_refused",
        "tests/unit/storage/test_run_directory.py::test_links_are_not_followed",
        "tests/faults/test_hostile_checkpoints.py::test_a_traversal_names_nothing_outside",
    ],
    "a report escapes all text": [
        "tests/unit/report/test_attacks.py::test_an_attack_in_every_text_stays_text",
        "tests/unit/report/test_page.py::test_the_policy_allows_the_inline_style_and_script_and_nothing_else",
        "tests/browser/test_report.py::test_no_attack_in_any_text_runs",
    ],
    "diffkit has no telemetry": [
        "tests/policy/test_imports.py::test_nothing_speaks_to_a_network",
        "tests/unit/basics/test_trackers.py::test_wandb_writes_an_offline_run",
        "tests/unit/basics/test_shards.py::test_remote_folders",
    ],
    "`diffkit run -P ./file.py`": [
        "tests/unit/cli/test_running.py::test_a_one_file_plugin_is_used_by_explicit_flag_only"
    ],
    "`tests/policy/test_security.py`": ["tests/policy/test_security.py::test_each_statement_has_tests"],
}
"""The tests of each statement, which is named by its first words."""


def test_the_limits_are_those_of_the_code() -> None:
    assert f"at most {MAX_BYTES >> 20} MiB, {MAX_NODES:,} values and {MAX_DEPTH} levels" in STATEMENTS[3]
    limits = (
        f"more than {MAX_STATE_BYTES >> 20} MiB or {MAX_RECORD_VALUES:,} values, of a checkpoint {MAX_JSON_VALUES:,};"
    )
    assert f"{limits} of a log, at most {MAX_LOG_BYTES >> 20} MiB" in STATEMENTS[7]
    assert f"`{RUN_NAME.pattern}`" in TEXT


def test_each_statement_has_tests() -> None:
    assert [start for text in STATEMENTS for start in TESTS if text.startswith(start)] == list(TESTS)
    assert len(STATEMENTS) == len(TESTS)


@pytest.mark.parametrize("place", sorted({place for places in TESTS.values() for place in places}))
def test_the_tests_exist(place: str) -> None:
    path, _, name = place.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_"}
    assert found if not name else name in found


PRINTING = ("click.echo", "print", "warnings.warn")
WITHOUT_NAMES = {
    "diffkit/cli/console.py": "the functions that print escape their text",
    "diffkit/cli/check.py": "a line that is overwritten, whose name is escaped",
    "diffkit/runtime/progress.py": "numbers",
    "diffkit/basics/metrics/bits_per_dim.py": "numbers",
    "plugins/diffkit-compression/src/diffkit_compression/compressing.py": "numbers",
    "plugins/diffkit-inverse/src/diffkit_inverse/methods.py": "a text of the line before",
    "plugins/diffkit-diffusers/src/diffkit_diffusers/convert_worker.py": "its reader puts the line into an error",
}


def test_what_is_printed_is_escaped() -> None:
    """Any text with an expression in it passes `plain`."""
    raw = {
        f"{source.path}:{node.lineno}"
        for source in shipped()
        for node in source.nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) in PRINTING and source.path not in WITHOUT_NAMES
        if not (isinstance(node.args[0], ast.Call) and ast.unparse(node.args[0].func) == "plain")
        and not isinstance(node.args[0], ast.Constant)
    }
    assert raw == set()
