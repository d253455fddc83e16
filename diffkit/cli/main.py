"""`diffkit`: the group of commands, the switches that are read before any plugin is looked for, and exit codes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import click

from .. import __version__
from ..errors import DiffkitError, UsageError
from ..runtime.memory import keep_freed_memory
from ..storage.lock import close_inherited_locks
from .console import ReaderLeftError, say_error

COMMANDS = {
    "run": ("running:run", "Train, sample, evaluate and report, as a recipe says."),
    "sample": ("running:sample", "Draw samples from a run."),
    "evaluate": ("running:evaluate", "Measure a run with metrics."),
    "report": ("running:report", "Write report.html of a run."),
    "ls": ("listing:ls", "List components, recipes and runs."),
    "show": ("listing:show", "Describe one component: formula, options, source."),
    "cp": ("listing:cp", "Copy a built-in recipe to edit it."),
    "validate": ("recipes:validate", "Check recipes without running them."),
    "config": ("recipes:config", "Print a recipe whole, with defaults and where each value comes from."),
    "schema": ("recipes:schema", "Print the JSON Schema of recipes, for editors."),
    "plugins": ("listing:plugins", "List plugins, and say why one is broken."),
    "check": ("check:check", "Hold components against the laws of diffusion."),
    "new": ("new:new", "Start a plugin package."),
    "cite": ("listing:cite", "Print BibTeX of what a recipe uses."),
    "doctor": ("listing:doctor", "Report versions, hardware and plugins."),
    "checkpoints": ("runs:checkpoints", "List and verify the checkpoints of a run."),
    "compare": ("runs:compare", "Put the recipes and results of runs side by side."),
}


CRASH = "crash.txt"


class Commands(click.Group):
    """Commands that are imported when they are called, then those that plugins add."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(self._added())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            module, _, attribute = COMMANDS[name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(f"diffkit.cli.{module}"), attribute)
            return command
        return self._added().get(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant; an unknown one is answered with the nearest name."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], self.list_commands(ctx), n=1)
            said = error.format_message()
            if not near or "did you mean" in said.lower():
                raise
            raise click.UsageError(f'{said} Did you mean "{near[0]}"?', ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in COMMANDS.items()]
        rows += [(name, command.get_short_help_str()) for name, command in sorted(self._added().items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _added(self) -> dict[str, click.Command]:
        """Commands of plugins. A plugin cannot take a name of ours: the host sees the group with all of them."""
        if not hasattr(self, "_plugin_commands"):
            from ..host import registry

            group = click.Group(commands={name: click.Command(name) for name in COMMANDS})
            registry().commands(group)
            self._plugin_commands = {name: c for name, c in group.commands.items() if name not in COMMANDS}
        return self._plugin_commands


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 bug, 2 usage, 3 recipe, 4 plugin, 5 data, 6 disk or memory, 7 diverged, "
    "8 no checkpoint, 9 locked, 10 check found violations, 75 stopped early (run again), 130/143 forced.",
)
@click.version_option(__version__, prog_name="diffkit")
@click.option("--plugins", "pinned", metavar="none|a,b", help="Load only these plugins besides the defaults.")
@click.option("-p", "dropped", metavar="no:NAME", multiple=True, help="Leave one plugin out.")
@click.option("-P", "files", metavar="FILE", multiple=True, help="Load a one-file plugin, for this command.")
@click.option("--no-color", is_flag=True, help="Plain text; the variable NO_COLOR does the same.")
def cli(pinned: str | None, dropped: Sequence[str], files: Sequence[str], no_color: bool) -> None:
    """Train, sample and test diffusion models declared in a recipe.

    \b
    diffkit run digits         train on handwritten digits and write a report
    diffkit ls                 what recipes and components there are
    diffkit cp digits my.yaml  start a recipe of your own
    """


def take_switches(arguments: Sequence[str]) -> list[str]:
    """Apply `--plugins`, `-p no:NAME`, `-P FILE` and `--no-color` wherever they stand, and return the other arguments.

    They are read here, before click, because a plugin must not run before the switch that leaves it out is known.
    Raises UsageError for a switch without its value.
    """
    rest: list[str] = []
    pinned: str | None = None
    dropped: list[str] = []
    files: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--no-color":
            os.environ["NO_COLOR"] = "1"
        elif word == "--plugins" or word.startswith("--plugins="):
            pinned = word.partition("=")[2] if "=" in word else _value("--plugins", words)
        elif word.startswith("-P"):
            files.append(word.removeprefix("-P").removeprefix("=") or _value("-P", words))
        elif word == "-p" or word.startswith(("-p=", "-pno:")):
            value = _value("-p", words) if word == "-p" else word.removeprefix("-p").removeprefix("=")
            if not value.startswith("no:"):
                raise UsageError(f"-p {value} says nothing", code="DK011", fix="write -p no:NAME to leave a plugin out")
            dropped.append(value.removeprefix("no:"))
        else:
            rest.append(word)
    if pinned is not None or dropped:
        from ..host import configure

        configure(plugins=pinned, without=dropped)
    if files:
        from ..host import load_file

        for file in files:
            load_file(Path(file))
    return rest


def _value(switch: str, words: object) -> str:
    value = next(words, None)  # type: ignore[call-overload]
    if value is None:
        raise UsageError(f"{switch} needs a value", code="DK011", fix=f"see diffkit --help for {switch}")
    return str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, and never shows a traceback for a user's mistake."""
    configure_process()
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = any(word in ("-v", "--verbose") for word in given)
    try:
        result = cli.main(take_switches(given), prog_name="diffkit", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except DiffkitError as error:
        say_error(error.render())
        if verbose:
            say_error(traceback.format_exc())
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say_error("stopped")
        return 130
    except ReaderLeftError:  # nothing is left to say, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug is reported whole
        return _report_bug(error)


@functools.cache
def configure_process() -> None:
    """Change what holds for the whole process, once: malloc keeps freed memory, and forked processes hold no lock."""
    keep_freed_memory()
    os.register_at_fork(after_in_child=close_inherited_locks)


def _report_bug(error: Exception) -> int:
    """Show the traceback, and keep it where it can be sent from: a run has put it into its directory already."""
    text = "".join(traceback.format_exception(error))
    say_error(f"{text}\nthis is a bug in diffkit or in a plugin")
    if not any(CRASH in note for note in getattr(error, "__notes__", ())):
        path = Path(os.environ.get("DIFFKIT_CRASH_DIR", ".")) / CRASH
        with contextlib.suppress(OSError):  # it has been shown, and a read-only folder is no second fault
            path.write_text(text, encoding="utf-8")
            say_error(f"the traceback is in {path}")
    return 1


def entry() -> None:
    """The console script."""
    _open_closed_streams()
    sys.exit(main())


def _open_closed_streams() -> None:
    """`>&-` leaves no stream at all: give it one that leads nowhere, so that no file of ours gets its number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - for the whole process
