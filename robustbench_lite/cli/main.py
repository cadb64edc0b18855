"""The `rbl` command: its parts, and what becomes of an error."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from ..errors import PluginError, RblError
from . import doctor, evaluate, leaderboard, plugins, train, verify

app = typer.Typer(
    name="rbl",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How robust is this classifier, can the number be trusted, and does this defense help?",
    epilog="[bold]Start with[/]  rbl evaluate --model resnet18 --attack pgd",
)
app.command(epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(epilog=train.EPILOG)(train.train)
app.add_typer(leaderboard.app, name="leaderboard")
app.command(epilog=verify.EPILOG)(verify.verify)
app.command()(plugins.plugins)
app.add_typer(plugins.attacks_app, name="attacks")
app.add_typer(plugins.defenses_app, name="defenses")
app.command()(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"robustbench-lite {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command line and exit: 0, 2 for what the user can mend, 1 for our fault, 130 for Ctrl-C."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command; the exit status, errors told on stderr."""
    try:
        code = app(arguments, prog_name="rbl", standalone_mode=False)
        sys.stdout.flush()
    except RblError as error:
        return _tell(error)
    except KeyboardInterrupt:
        _line("stopped")
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`); what it wanted it has.
        sys.stderr.close()
        return 0
    except Exception as error:
        return _foreign(error)
    return code if isinstance(code, int) else 0


def _tell(error: RblError) -> int:
    if type(error).__name__ == "Interrupted":
        _line(str(error))
        return 130
    if isinstance(error, PluginError):
        for own in getattr(error, "__notes__", []):
            sys.stderr.write(own + "\n")
    _line(f"error: {error}")
    return 2


def _foreign(error: Exception) -> int:
    """Usage errors come from the command-line library; anything else is our fault."""
    show = getattr(error, "format_message", None)
    if isinstance(error, typer.Exit):
        return error.exit_code
    if callable(show):
        _line(f"error: {' '.join(str(show()).split())}")
        context = getattr(error, "ctx", None)
        if context is not None:
            _line(f"see: {context.command_path} --help")
        return 2
    if isinstance(error, typer.Abort):
        return 130
    traceback.print_exception(error)
    _line("error: this is a fault of robustbench-lite, not yours; please report it with the lines above")
    return 1


def _line(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    run()
