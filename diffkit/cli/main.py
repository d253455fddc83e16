"""The program `diffkit`: its commands, the switches that are read before plugins are found, and exit codes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import click

from .. import __version__
from ..errors import DiffkitError, UsageError, plain, system_error
from ..host.process_state import is_kept_alive
from ..runtime.memory import enough_memory, keep_freed_memory
from ..runtime.signals import SecondSignalError
from ..storage.lock import close_inherited_locks
from .console import ReaderLeftError, say_error

COMMANDS = {
    "run": ("running:run", "Run a recipe: train, sample, evaluate and report."),
    "sample": ("running:sample", "Draw samples from a run."),
    "evaluate": ("running:evaluate", "Measure samples of a run."),
    "report": ("running:report", "Write report.html of a run."),
    "ls": ("components:ls", "List components, recipes and runs."),
    "show": ("components:show", "Describe one component: formula, options, source."),
    "cp": ("recipes:cp", "Copy a built-in recipe to edit it."),
    "validate": ("recipes:validate", "Check recipes without running them."),
    "config": ("recipes:config", "Print every value of a recipe, with its origin."),
    "schema": ("recipes:schema", "Print the JSON Schema of recipes, for editors."),
    "plugins": ("components:plugins", "List plugins, and show why one is broken."),
    "check": ("check:check", "Check components against the laws of diffusion."),
    "new": ("new:new", "Start a plugin package."),
    "cite": ("recipes:cite", "Print the BibTeX entries of a recipe."),
    "doctor": ("doctor:doctor", "Report versions, hardware and plugins."),
    "checkpoints": ("runs:checkpoints", "List and verify the checkpoints of a run."),
    "compare": ("runs:compare", "Compare the recipes and results of runs."),
}


SWITCHES = "Every command also takes --plugins, -p no:NAME, -P FILE and --no-color: see diffkit --help."
CRASH = "crash.txt"


class Commands(click.Group):
    """Commands that are imported when they are called, and the commands of plugins."""

    _plugins: Sequence[object] | None = None
    _plugin_commands: Mapping[str, click.Command]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(self._added())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            module, _, attribute = COMMANDS[name][0].partition(":")
            command: click.Command | None = getattr(importlib.import_module(f"diffkit.cli.{module}"), attribute)
        else:
            command = self._added().get(name)
        if command is not None:
            command.epilog = command.epilog or SWITCHES
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of this name. An error for an unknown name suggests the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], self.list_commands(ctx), n=1)
            message = error.format_message()
            if near and "did you mean" not in message.lower():
                message += f' Did you mean "{near[0]}"?'
            raise click.UsageError("\n".join([message, *_missing_commands()]), ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in COMMANDS.items()]
        rows += [(name, command.get_short_help_str()) for name, command in sorted(self._added().items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        for line in _missing_commands():
            formatter.write(f"\n{plain(line)}\n")

    def _added(self) -> Mapping[str, click.Command]:
        """Add the commands of plugins to the group; they cannot replace commands of diffkit."""
        from ..host import registry

        if self._plugins is not registry().plugins:
            group = click.Group(commands={name: click.Command(name) for name in COMMANDS})
            registry().commands(group)
            self._plugins = registry().plugins
            self._plugin_commands = {name: c for name, c in group.commands.items() if name not in COMMANDS}
        return self._plugin_commands


def _missing_commands() -> list[str]:
    """Describe each broken plugin, since its commands are missing."""
    from ..host import registry

    return [
        f'The plugin "{one.name}" ({one.label}) is broken, so its commands are missing: {one.reason}; see '
        f"diffkit plugins --why {one.name}"
        for one in registry().plugins
        if one.status == "broken"
    ]


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 bug, 2 usage, 3 recipe, 4 plugin, 5 data, 6 disk or memory, 7 diverged, "
    "8 no checkpoint, 9 locked, 10 check found violations, 11 lost a process, 75 stopped early (run again), "
    "130/143 forced.",
)
@click.version_option(__version__, prog_name="diffkit")
@click.option("--plugins", "pinned", metavar="none|a,b", help="Load only these plugins and the default ones.")
@click.option("-p", "dropped", metavar="no:NAME", multiple=True, help="Do not load one plugin.")
@click.option("-P", "files", metavar="FILE", multiple=True, help="Load a plugin from one file.")
@click.option("--no-color", is_flag=True, help="Print plain text, like the variable NO_COLOR.")
def cli(pinned: str | None, dropped: Sequence[str], files: Sequence[str], no_color: bool) -> None:
    """Train, sample and test diffusion models declared in a recipe.

    \b
    diffkit run digits         train on handwritten digits and write a report
    diffkit ls                 list recipes and components
    diffkit cp digits my.yaml  copy a recipe to edit it
    """


SWITCH = re.compile(r"(--plugins(?==|$)|-P|-p(?==|no:|$))(=.*|.+)?", re.DOTALL)


def take_switches(arguments: Sequence[str]) -> list[str]:
    """Apply `--plugins`, `-p no:NAME`, `-P FILE` and `--no-color` wherever they stand, and return the other arguments.

    They are read before click parses the command line, since plugins may add commands. Raises UsageError for a switch
    without its value.
    """
    rest: list[str] = []
    given: dict[str, list[str]] = {"--plugins": [], "-p": [], "-P": []}
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--no-color":
            os.environ["NO_COLOR"] = "1"
        elif found := SWITCH.fullmatch(word):
            value = found[2].removeprefix("=") if found[2] else next(words, None)
            if value is None:
                raise UsageError(f"{word} needs a value", code="DK011", fix=f"see diffkit --help for {word}")
            given[found[1]].append(value)
        else:
            rest.append(word)
    if wrong := [value for value in given["-p"] if not value.startswith("no:")]:
        raise UsageError(f"-p {wrong[0]} is not no:NAME", code="DK011", fix="write -p no:NAME to disable a plugin")
    if given["--plugins"] or given["-p"]:
        from ..host import configure

        pinned = given["--plugins"][-1] if given["--plugins"] else None
        configure(plugins=pinned, without=[value.removeprefix("no:") for value in given["-p"]])
    if given["-P"]:
        from ..host import load_file

        for file in given["-P"]:
            load_file(Path(file))
    return rest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. A mistake of the user never shows a traceback."""
    configure_process()
    with warnings.catch_warnings():
        first = os.environ.get("LOCAL_RANK", "0") == "0"  # of the processes of a run on this host
        warnings.showwarning = lambda message, *place, **more: say_error(f"warning: {message}") if first else None
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        os.getcwd()  # in a directory that was removed, torch would end the process
        with enough_memory(what="the command"):
            result = cli.main(take_switches(given), prog_name="diffkit", standalone_mode=False, obj=given)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        say_error(shown.getvalue().rstrip())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say_error("stopped")
        return 130
    except ReaderLeftError:  # Python must not print at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SecondSignalError as error:
        return int(error.code or 1)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - any other error is a bug, a call of sys.exit included
        known = system_error(error) if isinstance(error, OSError) else error
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            from ..runtime.launch import note_failure

            note_failure(error)
        if not isinstance(known, DiffkitError):
            return _report_bug(error)
        if known.reported:
            return known.exit_code
        say_error(known.render())
        if any(word in ("-v", "--verbose") for word in given):
            say_error(traceback.format_exc())
        return known.exit_code


@functools.cache
def configure_process() -> None:
    """Configure the process once: malloc keeps freed memory, torch logs only errors, forked processes hold no lock."""
    keep_freed_memory()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch warns of each wait for another process
    os.register_at_fork(after_in_child=close_inherited_locks)


def _report_bug(error: BaseException) -> int:
    """Print the traceback, and write it to crash.txt in $DIFFKIT_CRASH_DIR; a run writes it to its directory."""
    text = "".join(traceback.format_exception(error))
    say_error(f"{text}\nThis is a bug in diffkit or in a plugin.")
    folder = os.environ.get("DIFFKIT_CRASH_DIR")
    if folder and not any(CRASH in note for note in getattr(error, "__notes__", ())):
        path = Path(folder) / CRASH
        with contextlib.suppress(OSError):  # the traceback is printed above; a read-only folder is not a second error
            path.write_text(text, encoding="utf-8")
            say_error(f"the traceback is in {path}")
    return 1


def entry() -> None:
    """Entry point of the console script."""
    _open_closed_streams()
    code = main()
    if is_kept_alive():  # a plugin that is listed as broken for it would else keep every command from ending
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Replace closed standard streams (`>&-`) by the null device, so that no other file gets their descriptors."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - for the whole process
