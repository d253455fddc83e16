"""`diffkit new`: starts a plugin package that installs, lists, runs in a recipe and passes `diffkit check` as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

import click

from .. import __version__
from ..errors import UsageError
from ..host.loader import API
from .console import say

SUMMARIES = {
    "schedule": "alpha = cos(pi t / 2)",
    "parameterization": "v = alpha eps - sigma x0",
    "network": "two layers that see each position alone",
    "sampler": "Euler's method",
    "grid": "equal steps in the angle",
    "times": "every time alike",
    "objective": "squared error of the output",
    "weighting": "min(snr, ceiling)",
    "guidance": "x0 clamped",
    "codec": "z = factor x",
    "augmentation": "half of the images upside down",
    "data": "points on a circle",
    "metric": "distance between the means",
    "tracker": "numbers as CSV",
}
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@click.command()
@click.argument("name")
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(list(SUMMARIES)), help="A kind of component; may be repeated."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; by default diffkit-NAME.")
def new(name: str, kinds: tuple[str, ...], out: Path | None) -> None:
    """Start the plugin package diffkit-NAME with one component of each --kind (by default a weighting).

    It installs, lists, runs in a recipe and passes `diffkit check` as it is; then make it yours.
    """
    bare = name.removeprefix("diffkit-")
    if not NAME.fullmatch(bare):
        raise UsageError(
            f"a plugin cannot be called {name!r}",
            code="DK024",
            choices="small letters, digits and single hyphens, the first a letter",
        )
    package = Package(bare, tuple(dict.fromkeys(kinds)) or ("weighting",))
    folder = out or Path(package.distribution)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and is not empty", code="DK015", fix="choose another --out")
    for path, text in package.files().items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    say(f"{folder}   next: pip install -e {folder} && diffkit check {package.distribution}")


@dataclass(frozen=True)
class Package:
    """The files of a plugin package called `name`, with one component of each of `kinds`."""

    name: str
    kinds: tuple[str, ...]

    @property
    def distribution(self) -> str:
        """The name that pip knows."""
        return f"diffkit-{self.name}"

    @property
    def module(self) -> str:
        """The name that Python imports."""
        return self.distribution.replace("-", "_")

    @property
    def class_name(self) -> str:
        """The name of each class; every one lives in the module of its kind."""
        return "".join(part.capitalize() for part in self.name.split("-"))

    def files(self) -> dict[str, str]:
        """Every file by its path in the package's folder."""
        source = f"src/{self.module}"
        rows = [f"| {kind} | `{self.name}` | {SUMMARIES[kind]} |" for kind in self.kinds]
        values = {
            "distribution": self.distribution,
            "module": self.module,
            "name": self.name,
            "version": __version__,
            "api": str(API),
            "recipe": self.name,
            "Class": self.class_name,
            "entries": "\n".join(map(self._entry, self.kinds)) + "\n",
            "table": "\n".join(rows),
            "sections": "\n".join(f"## {kind} `{self.name}`\n\n{SUMMARIES[kind]}.\n" for kind in self.kinds),
        }
        files = {
            "pyproject.toml": _fill("pyproject", values),
            "README.md": _fill("readme", values),
            f"docs/{self.name}.md": _fill("docs", values),
            f"{source}/__init__.py": f'"""{self.distribution}: a plugin of diffkit."""\n',
            f"{source}/py.typed": "",
            f"{source}/plugin.py": _fill("plugin", values),
            f"{source}/recipes/{self.name}.yaml": self._recipe(values),
            "tests/test_laws.py": _fill("test", values),
        }
        return files | {f"{source}/{kind}.py": _fill(kind, values) for kind in self.kinds}

    def _entry(self, kind: str) -> str:
        target = f"{self.module}.{kind}:{self.class_name}"
        line = f'    yield Entry("{kind}", "{self.name}", "{target}", "{SUMMARIES[kind]}")'
        if len(line) <= 120:
            return line
        return f'    yield Entry(\n        "{kind}", "{self.name}", "{target}", "{SUMMARIES[kind]}"\n    )'

    def _recipe(self, values: Mapping[str, str]) -> str:
        """A recipe that names every component of the package, on images where one of them needs images."""
        images = "augmentation" in self.kinds and "data" not in self.kinds
        own = dict.fromkeys(self.kinds, self.name)
        data = own.get("data", "digits" if images else "mixture")
        flags = ", labels: false" if data == "digits" else ""
        augment = f", augment: [{self.name}]" if images else ""
        unet = "{name: unet, channels: 32, multipliers: [1, 2], attention: []}"
        parts = [f"{kind}: {self.name}" for kind in ("weighting", "times") if kind in own]
        objective = ", ".join([f"name: {own.get('objective', 'simple')}", *(parts if "objective" not in own else [])])
        sampler = f"sampler: {own.get('sampler', 'ancestral')}"
        guidance = [f"guidance: [{self.name}]"] if "guidance" in own else []
        grid = [f"grid: {self.name}"] if "grid" in own else []
        more = {
            "data": f"{{name: {data}{flags}{augment}}}",
            "schedule": own.get("schedule", "linear"),
            "parameterization": own.get("parameterization", "eps"),
            "network": own.get("network", unet if images else "{name: mlp, width: 64}"),
            "objective": f"{{{objective}}}",
            "sample": f"{{{', '.join([sampler, *grid, *guidance, 'count: 64', 'steps: 50'])}}}",
            "metrics": f"[{own.get('metric', 'sliced-wasserstein')}]",
            "codec": f"codec: {self.name}\n" if "codec" in own else "",
            "trackers": f"trackers: [{self.name}]\n" if "tracker" in own else "",
        }
        return _fill("recipe", {**values, **more}).rstrip() + "\n"


def _fill(template: str, values: Mapping[str, str]) -> str:
    text = (resources.files("diffkit.cli") / "scaffold" / f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(values)
