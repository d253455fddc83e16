"""What a run was made with: versions, plugins, hardware, threads, and the state of the git work tree."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from ..host import registry

PACKAGES = ("diffkit", "torch", "numpy", "pydantic", "pluggy", "safetensors", "pillow", "scikit-learn")
_GIT_SECONDS = 5.0


def environment(device: str = "cpu") -> dict[str, Any]:
    """A JSON object for environment.json, with nothing in it that changes from one start to the next by itself."""
    return {
        "versions": versions(),
        "plugins": {plugin.name: plugin.version for plugin in registry().plugins if plugin.status == "ok"},
        "hardware": hardware(device),
        "threads": threads(),
        "git": git_state(Path.cwd()),
    }


def versions() -> dict[str, str]:
    """Versions of python and of the packages that numbers depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str) -> dict[str, Any]:
    """The machine, and the accelerator where `device` is one."""
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
        found |= {
            "accelerator": properties.name,
            "accelerator_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return found


def threads() -> dict[str, Any]:
    """What the order of floating-point sums depends on."""
    import torch

    return {
        "intra_op": torch.get_num_threads(),
        "inter_op": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit and cleanness of the work tree around `directory`; None where there is none, or no git."""
    commit = _git(directory, "rev-parse", "HEAD")
    changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "clean": changed == ""}


def _git(directory: Path, *arguments: str) -> str | None:
    # Git itself would run what a repository's fsmonitor names; a repository around a run is data, not code.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(directory), *arguments]
    quiet = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, env=quiet, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
