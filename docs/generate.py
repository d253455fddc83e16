"""Reference pages made from the code while the documentation is built: recipe keys, commands, components, laws, errors.

mkdocs calls `on_files`; nothing is written to disk.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from diffkit.cli.main import COMMANDS, cli
from diffkit.errors import DiffkitError
from diffkit.host import registry
from diffkit.recipe.contents import default_text, describe, type_text
from diffkit.recipe.signature import Parameter, section_parameters
from diffkit.recipe.spec import TASKS
from diffkit.testing.law_registry import Law, laws

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

from docstrings import markdown  # noqa: E402 - this folder is not a package

OTHER_EXITS = {
    0: "done",
    1: "a bug in diffkit or in a plugin; the traceback is in the run directory (`crash.txt`)",
    130: "a second Ctrl-C",
    143: "a second SIGTERM",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/recipe.md": recipe_page(),
        "reference/cli.md": cli_page(),
        "reference/errors.md": errors_page(),
        **{f"reference/components/{kind}.md": kind_page(kind) for kind in registry().kinds},
        "reference/components/index.md": components_page(),
        "theory/laws.md": laws_page(),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give each identity an anchor, and list the laws that check it."""
    if page.file.src_uri != "theory/identities.md":
        return markdown

    def held(match: re.Match[str]) -> str:
        found = [_law_link(one, "") for one in laws() if match[1] in one.identities.split()]
        said = f" Laws: {', '.join(found)}." if found else ""
        return f"{match[0]}{said}\n{{ #{match[1].lower()} }}"

    return re.sub(r"^\*\*(\w+)\*\*.*(?:\n(?!\n).+)*", held, markdown, flags=re.MULTILINE)


def recipe_page() -> str:
    """Every key of a recipe: type, default, meaning."""
    head = "# Recipe keys\n\nA component is a bare name, or a mapping with `name` and its options.\n"
    first, *others = TASKS
    sections = [*_section(TASKS[first], "")]
    for task in others:
        sections += _section(TASKS[task], "", task=task)
    return head + "\n".join(sections)


def _section(cls: Any, path: str, task: str = "") -> Iterator[str]:
    title = path or (f"Top level with `task: {task}`" if task else "Top level")
    anchor = f" {{ #{_anchor(path)} }}" if path else ""
    yield f"\n## {title}{anchor}\n\n{markdown(cls.__doc__ or '')}\n\n| key | type | default |\n|---|---|---|"
    nested = []
    for parameter in section_parameters(cls):
        at = f"{path}.{parameter.name}".lstrip(".")
        if parameter.name == "component":
            yield f"| `name` | {_link(parameter.target)} | {_default(parameter)} |"
        elif parameter.role in ("section", "sections"):
            nested.append((parameter.target, at))
            yield f"| `{parameter.name}` | see [{at}](#{_anchor(at)}) | {_default(parameter)} |"
        elif "component" in parameter.role:
            many = {"components": "list of ", "named components": "mapping of names to "}.get(parameter.role, "")
            yield f"| `{parameter.name}` | {many}{_link(parameter.target)} | {_default(parameter)} |"
        else:
            yield f"| `{parameter.name}` | {_cell(_type(parameter))} | {_default(parameter)} |"
    for target, at in nested if not task else ():
        yield from _section(target, at)


def _type(parameter: Parameter) -> str:
    """The type in words, without the limits that only keep numbers sane."""
    return re.sub(r" <= [\d.]+e\+\d+", "", type_text(parameter))


def _anchor(path: str) -> str:
    return path.replace(".", "-")


def _link(kind: str) -> str:
    return f"[{kind}](components/{kind}.md)"


def _default(parameter: Parameter) -> str:
    if parameter.role in ("section", "sections"):
        return ""
    if parameter.role == "component" and isinstance(parameter.default, str):
        return f"`{parameter.default}`"
    return f"`{_cell(default_text(parameter))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def cli_page() -> str:
    """The help text of every command, and the exit codes."""
    parts = [f"# Command line\n\n```text\n{_help(cli, ['diffkit'])}\n```\n", _exits()]
    context = click.Context(cli, info_name="diffkit")
    for name in [*COMMANDS, *sorted(set(cli.list_commands(context)) - COMMANDS.keys())]:  # then those of plugins
        command = cli.get_command(context, name)
        assert command is not None
        parts.append(f"## diffkit {name}\n\n```text\n{_help(command, ['diffkit', name])}\n```\n")
    return "\n".join(parts)


def _help(command: click.Command, path: list[str]) -> str:
    context = click.Context(command, info_name=" ".join(path), max_content_width=100, terminal_width=100)
    return command.get_help(context)


def _exits() -> str:
    said = dict(OTHER_EXITS)
    for sub in _subclasses(DiffkitError):  # the first class of a code is the general one
        sentence = re.sub(r"^Raised (if|after) ", "", (sub.__doc__ or "").partition(". ")[0].partition("\n")[0])
        said.setdefault(sub.exit_code, sentence.rstrip("."))
    rows = [f"| {code} | {_cell(said[code])} |" for code in sorted(said)]
    return "\n".join(["## Exit codes { #exit-codes }\n", "| code | meaning |", "|---|---|", *rows, ""])


def components_page() -> str:
    """A table of everything that is registered."""
    rows = ["# Components\n\nWhat the packages of this repository register. On your machine: `diffkit ls`.\n"]
    for kind, record in registry().kinds.items():
        entries = registry().entries(kind)
        rows.append(f"\n## [{kind}]({kind}.md)\n\n{markdown(record.summary)}\n")
        if entries:
            rows.append("| name | from | what |\n|---|---|---|")
            rows += [
                f"| [`{e.name}`]({kind}.md#{e.name}) | {e.plugin.label} | {_cell(e.entry.summary)} |" for e in entries
            ]
    return "\n".join(rows)


def kind_page(kind: str) -> str:
    """Every component of one kind: formula, options, source, and the laws that check it."""
    parts = [f"# {kind}\n\n{markdown(registry().kinds[kind].summary)}\n"]
    general = [one for one in laws(kind) if not one.only]
    parts += _laws(general, "Laws that apply to all of them")
    for one in registry().entries(kind):
        account = describe(kind, one.qualified)
        parts.append(f"\n## {one.name} {{ #{one.name} }}\n\n*{account.plugin}*\n\n{markdown(account.doc)}\n")
        if account.injected:
            parts.append(f"The recipe passes its {' and its '.join(account.injected)}.\n")
        if account.options:
            parts.append("| option | type | default |\n|---|---|---|")
            parts += [f"| `{o.name}` | {_cell(o.type)} | `{_cell(o.default)}` |" for o in account.options]
        own = [each for each in laws(kind) if each.only and each.applies_to(one.name, one.plugin.name)]
        parts += _laws(own, "Laws of this component only")
    return "\n".join(parts)


def _laws(found: Sequence[Law], words: str) -> list[str]:
    return [f"\n{words}: {', '.join(_law_link(one) for one in found)}.\n"] if found else []


def _law_link(one: Law, folder: str = "../../theory/") -> str:
    return f"[{one.name}]({folder}laws.md#{_law_id(one)})"


def _law_id(one: Law) -> str:
    return "-".join(part for part in (one.kind, one.plugin, one.name) if part)


def laws_page() -> str:
    """Every law: statement, source, tolerance, and why it holds."""
    every = laws()
    parts = [
        f"# Laws\n\n{len(every)} statements that components must satisfy, by kind. `diffkit check` tests every"
        " component and shows the largest error beside the tolerance. An error is |found - expected| / max(1, largest"
        " |expected|), if the law states no other measure. Components that compute in float32, such as networks and"
        " codecs, are compared in this type, all others in float64 on the CPU. If a law cannot hold for a component,"
        " its `law_exemptions` gives the reason. How to add a law: [a plugin](../first-plugin.md#laws).\n"
    ]
    for kind in dict.fromkeys(one.kind for one in every):
        parts.append(f"\n## {kind}\n")
        parts += [_law(one) for one in every if one.kind == kind]
    return "\n".join(parts)


def _law(one: Law) -> str:
    lines = [f"### {one.name} {{ #{_law_id(one)} }}\n", f"{markdown(one.statement)}.\n"]
    if one.derivation:
        lines.append(f"Why: {markdown(one.derivation)}\n")
    facts = [f"source: {_sourced(one.source)}", _tolerance(one)]
    if one.identities:
        ids = [f"[{i}](identities.md#{i.lower()})" for i in one.identities.split()]
        facts.append(f"identities: {', '.join(ids)}")
    if one.only:
        names = [e.name for e in registry().entries(one.kind) if one.applies_to(e.name, e.plugin.name)]
        links = [f"[{name}](../reference/components/{one.kind}.md#{name})" for name in names]
        facts.append(f"only for: {', '.join(links) or ', '.join(one.only)}")
    return "\n".join([*lines, *(f"- {fact}" for fact in facts), ""])


def _tolerance(one: Law) -> str:
    """The largest error that passes, and the type of the numbers; a law without tolerance is exact."""
    return f"tolerance: {one.tolerance:g} in {one.dtype}" if one.tolerance else "tolerance: 0, each case is exact"


def _sourced(source: str) -> str:
    text = markdown(source)
    text = re.sub(r"design\.md", "[design](../develop/design.md)", text)
    return re.sub(r"\bidentities\b", "[identities](identities.md)", text)


def errors_page() -> str:
    """A list of the error pages."""
    rows = ["# Errors\n\nEvery message carries a code; each code has a page.\n\n| code | what |\n|---|---|"]
    for page in sorted((DOCS / "errors").glob("DK*.md")):
        title = page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        code, _, what = title.partition(":")
        rows.append(f"| [{code}](../errors/{page.name}) | {_cell(what.strip())} |")
    return "\n".join(rows)


def _subclasses(cls: type[DiffkitError]) -> Iterator[type[DiffkitError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)
