"""Describe the environment of a run: versions, plugins, hardware, threads and the git commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("diffkit", "torch", "numpy", "pydantic", "pluggy", "safetensors", "pillow", "scikit-learn")
_GIT_TIMEOUT_SECONDS = 5.0


def environment(device: str, plugins: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of environment.json, which is equal for two starts under equal conditions.

    Args:
        device: the device of the run, such as "cpu" or "cuda:0".
        plugins: versions by name of plugin.
    """
    return {
        "versions": versions(),
        "plugins": dict(plugins),
        "hardware": hardware(device),
        "threads": threads(),
        "git": git_commit(Path.cwd()),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str) -> dict[str, Any]:
    """Describe the machine, and the accelerator if `device` is a CUDA device."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": device,
    }
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(device)
        accelerator = {"accelerator": properties.name, "accelerator_bytes": properties.total_memory}
        found |= accelerator | {"cuda": torch.version.cuda}
    return found


def threads() -> dict[str, Any]:
    """Return the settings of torch that change the order of floating-point sums."""
    import torch

    return {
        "intra_op": torch.get_num_threads(),
        "inter_op": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def git_commit(directory: Path) -> str | None:
    """Return the commit of the work tree around `directory`; None if there is no work tree, no commit or no git.

    A repository is data: its configuration can name programs (filters, fsmonitor) that many git commands execute.
    `rev-parse` executes none of them. Whether the work tree has changes is not recorded, because `git status` runs
    the filters of the repository.
    """
    command = ["git", "-c", "core.fsmonitor=", "-C", str(directory), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
