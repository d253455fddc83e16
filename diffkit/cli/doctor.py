"""Findings for a bug report: versions, hardware, plugins, disk, and problems with them."""

from __future__ import annotations

import locale
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import click

from ..host import registry
from ..runtime.environment import hardware, threads, versions
from .console import as_json, list_all_commands, say_json, table

MIN_TORCH_VERSION = (2, 10)
MIN_FREE_BYTES = 1e9


@dataclass(frozen=True)
class Finding:
    """One fact about the installation, and the problem with it, or None."""

    what: str
    value: str
    problem: str | None = None


def examine() -> list[Finding]:
    """Return all findings. Torch is imported only if it is installed."""
    return [*_versions(), *_hardware(), *_plugins(), *_surroundings()]


def _versions() -> Iterator[Finding]:
    for name, version in versions().items():
        problem = None
        if name == "torch" and tuple(int(part) for part in version.split(".")[:2]) < MIN_TORCH_VERSION:
            problem = "older than 2.10, which has a known memory corruption (CVE-2026-24747): pip install -U torch"
        yield Finding(name, version, problem)


def _hardware() -> Iterator[Finding]:
    found = hardware("cpu")
    yield Finding("system", str(found["system"]))
    yield Finding("processor", f"{found['processor']}, {found['cores']} cores")
    try:
        metadata.version("torch")
    except metadata.PackageNotFoundError:
        yield Finding("devices", "unknown", "torch is not installed: pip install torch")
        return
    import torch

    yield Finding("threads", ", ".join(f"{name} {value}" for name, value in threads().items()))
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("devices", ", ".join(["cpu", *names]))


def _plugins() -> Iterator[Finding]:
    for plugin in registry().plugins:
        problem = f"{plugin.reason}; see diffkit plugins --why {plugin.name}" if plugin.status == "broken" else None
        yield Finding(f"plugin {plugin.name}", f"{plugin.label} ({plugin.status})", problem)


def _surroundings() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding("free disk", f"{free / 1e9:.1f} GB", "less than 1 GB" if free < MIN_FREE_BYTES else None)
    encoding = locale.getencoding()
    yield Finding("encoding", encoding, None if encoding.lower().replace("-", "") == "utf8" else "not UTF-8")


@click.command()
@as_json
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Report versions, hardware, plugins and disk, and problems with them."""
    list_all_commands(ctx)
    findings = examine()
    if as_json:
        say_json([asdict(finding) for finding in findings])
    else:
        table([[f.what, f.value, f.problem or ""] for f in findings], ["what", "value", "problem"])
    if any(f.problem for f in findings):
        sys.stdout.flush()
