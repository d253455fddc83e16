"""`diffkit new`: create a plugin package with an example component of each kind, a recipe and tests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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
    "network": "two layers applied to each position",
    "sampler": "Euler's method",
    "grid": "equal steps in the angle",
    "times": "uniform times",
    "objective": "squared error of the output",
    "weighting": "min(snr, ceiling)",
    "guidance": "x0 clamped",
    "codec": "z = factor x",
    "reconstruction-loss": "log cosh of the error",
    "conditioner": "classes from the last to the first",
    "augmentation": "half of the images upside down",
    "data": "points on a circle",
    "metric": "distance between the means",
    "optimizer": "gradient descent with momentum",
    "lr-schedule": "constant, then one half",
    "strategy": "one process",
    "callback": "the size of the weights in a text file",
    "tracker": "numbers as CSV",
}
"""The kinds with an example component, and the summary of each example."""
LOSS, AUTOENCODER = "reconstruction-loss", "autoencoder"
"""The kind whose package also gets a codec that it trains, and the module of this codec."""
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@click.command()
@click.argument("name")
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(list(SUMMARIES)), help="Kind of a component; may be repeated."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; default: diffkit-NAME.")
def new(name: str, kinds: tuple[str, ...], out: Path | None) -> None:
    """Create the plugin package diffkit-NAME with one component of each --kind (default: a weighting).

    The package can be installed and run, and passes `diffkit check`. Replace the examples by your own components.
    """
    bare = name.removeprefix("diffkit-")
    if not NAME.fullmatch(bare):
        allowed = "lower-case letters, digits and single hyphens, starting with a letter"
        raise UsageError(f"{name!r} cannot be the name of a plugin", code="DK024", choices=allowed)
    package = Package(bare, tuple(dict.fromkeys(kinds)) or ("weighting",))
    folder = out or Path(package.distribution)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and is not empty", code="DK015", fix="pass another --out")
    for path, text in package.files().items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    say(f"{folder}   next: pip install -e {folder} && diffkit check {package.distribution}")


@dataclass(frozen=True)
class Package:
    """The files of the plugin package `name`, with one component of each of `kinds`."""

    name: str
    kinds: tuple[str, ...]

    @property
    def distribution(self) -> str:
        """The name of the distribution for pip."""
        return f"diffkit-{self.name}"

    @property
    def module(self) -> str:
        """The name of the package for `import`."""
        return self.distribution.replace("-", "_")

    @property
    def class_name(self) -> str:
        """The name of each class; each is in a module named after its kind."""
        return "".join(part.capitalize() for part in self.name.split("-"))

    def files(self) -> dict[str, str]:
        """Return the text of every file by its path in the folder of the package."""
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
            "entries": "\n".join(self._entries()) + "\n",
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
        if LOSS in self.kinds:
            files[f"{source}/{AUTOENCODER}.py"] = _fill(AUTOENCODER, values)
        return files | {f"{source}/{_module(kind)}.py": _fill(_module(kind), values) for kind in self.kinds}

    def _entries(self) -> Iterator[str]:
        rows = [(kind, self.name, _module(kind), SUMMARIES[kind]) for kind in self.kinds]
        if LOSS in self.kinds:
            rows.append(("codec", f"{self.name}-autoencoder", AUTOENCODER, "linear maps of the channels"))
        for kind, name, module, summary in rows:
            arguments = f'"{kind}", "{name}", "{self.module}.{module}:{self.class_name}", "{summary}"'
            line = f"    yield Entry({arguments})"
            yield line if len(line) <= 120 else f"    yield Entry(\n        {arguments}\n    )"

    def _recipe(self, values: Mapping[str, str]) -> str:
        """Return a recipe that names every component of the package, on images if one of them requires images."""
        images = "augmentation" in self.kinds and "data" not in self.kinds
        own = dict.fromkeys(self.kinds, self.name)
        data = own.get("data", "digits" if images else "mixture")
        labelled = "conditioner" in own and data in ("digits", "mixture")
        flags = f", labels: {str(labelled).lower()}" if data == "digits" or labelled else ""
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
            "optimizer": own.get("optimizer", "{name: adam, lr: 1.0e-3}"),
            "lr_schedule": f"{{name: {own.get('lr-schedule', 'constant')}, warmup: 20}}",
            "strategy": f"  strategy: {self.name}\n" if "strategy" in own else "",
            "codec": f"codec: {self.name}\n" if "codec" in own else "",
            "conditions": f"conditions: {{label: {self.name}}}\n" if "conditioner" in own else "",
            "callbacks": f"callbacks: [{self.name}]\n" if "callback" in own else "",
            "trackers": f"trackers: [{self.name}]\n" if "tracker" in own else "",
        }
        return _fill("recipe", {**values, **more}).rstrip() + "\n"


def _module(kind: str) -> str:
    """Return the name of the module and template of a kind."""
    return kind.replace("-", "_")


def _fill(template: str, values: Mapping[str, str]) -> str:
    text = (resources.files("diffkit.cli") / "scaffold" / f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(values)
