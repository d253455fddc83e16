"""The examples for Slurm, Kubernetes and SkyPilot in docs/how-to/distributed.md, as far as they can be checked here."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
import yaml

from diffkit.cli.running import run

from .sources import ROOT

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs/how-to/distributed.md").read_text("utf-8"), re.M | re.S)
SHELL = [text for kind, text in BLOCKS if kind == "sh"]
MANIFESTS = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yml"]
OPTIONS = {flag for option in run.params for flag in option.opts}


def require_known_options(command: str) -> None:
    """The options that follow `diffkit run` are options of that command."""
    words = shlex.split(command.partition("run ")[2], comments=True)
    assert {word for word in words if word.startswith("--")} <= OPTIONS


@pytest.mark.parametrize("script", [*SHELL, *(one["run"] for one in MANIFESTS if "run" in one)])
def test_scripts_are_valid_shell_and_use_our_options(script: str) -> None:
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    commands = [line for line in script.splitlines() if "diffkit run" in line]
    assert commands or "diffkit" in script
    for command in commands:
        require_known_options(command[command.index("diffkit run") :])


def test_slurm_ends_a_job_by_the_signal_that_saves() -> None:
    (job,) = [script for script in SHELL if "#SBATCH" in script]
    assert "--signal=TERM@" in job
    assert "-ne 75" in job


def test_manifests_have_the_fields_of_their_kind() -> None:
    job, task = MANIFESTS
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch", "the training operator looks for a container of this name"
    assert container["command"][:4] == ["torchrun", "-m", "diffkit", "run"]
    volumes = {volume["name"] for volume in worker["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert int(job["spec"]["nprocPerNode"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert set(task) <= {"num_nodes", "resources", "run", "setup", "envs", "workdir"}
