"""The `rbl` command: its parts, and what becomes of an error."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from ..errors import PluginError, RblError
from . import (
    answers,
    certify,
    curve,
    doctor,
    evaluate,
    features,
    leaderboard,
    plugins,
    sweep,
    train,
    transfer,
    verify,
)
from .app import App
from .speed import prepare_process
from .wording import as_typed, place_of, usage

# Set to 1, it shows the traceback of what a plug-in raised.
DEBUG = "RBL_DEBUG"
# What the file system refuses is the user's to mend, wherever it comes up.
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

app = App(
    name="rbl",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How robust is this classifier, can the number be trusted, and does this defense help?",
    epilog="[bold]Example[/]  rbl evaluate --model resnet18 --attack pgd",
)
app.command(epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(epilog=sweep.EPILOG)(sweep.sweep)
app.command(epilog=train.EPILOG)(train.train)
app.command(epilog=certify.EPILOG)(certify.certify)
app.add_typer(leaderboard.app, name="leaderboard")
app.command(epilog=verify.EPILOG)(verify.verify)
app.command(epilog=curve.EPILOG)(curve.curve)
app.command(epilog=transfer.EPILOG)(transfer.transfer)
app.command(epilog=plugins.EPILOG)(plugins.plugins)
app.add_typer(plugins.attacks_app, name="attacks")
app.add_typer(plugins.defenses_app, name="defenses")
app.add_typer(features.app, name="features")
app.command(epilog=doctor.EPILOG)(doctor.doctor)


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
    answers.speak_utf8()
    prepare_process()
    answers.take_any_text()
    answers.keep_stdout()
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command; the exit status, errors told on stderr."""
    try:
        with answers.alone(arguments):
            code = app(arguments, prog_name="rbl", standalone_mode=False)
        sys.stdout.flush()
    except RblError as error:
        return _tell(error, arguments)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        return _left(error)
    except Exception as error:
        return _foreign(error, arguments)
    if code == 130:
        _line("stopped")
    return code if isinstance(code, int) else 0


def _tell(error: RblError, arguments: Sequence[str]) -> int:
    if type(error).__name__ == "Interrupted":
        _line(str(error))
        return 130
    told = as_typed(str(error), arguments)
    if isinstance(error, PluginError) and error.__cause__ is not None:
        told = _outside(told, error.__cause__)
    _line(f"error: {told}")
    return 2


def _outside(told: str, cause: BaseException) -> str:
    """The line for what code from outside raised, with its place; under RBL_DEBUG its traceback before the line."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(cause)
        return told
    place = place_of(cause)
    return f"{told}{f' ({place})' if place else ''}; {DEBUG}=1 shows the traceback"


def _left(error: SystemExit) -> int:
    """Nothing of ours raises SystemExit: a library does where the reader has gone (`| head`), or it is a plug-in's."""
    if isinstance(error.__context__, OSError) and error.__context__.errno == errno.EPIPE:
        # What the reader wanted it has; the rest goes nowhere, quietly.
        answers.drop()
        return 0
    told = (
        f"code from outside ended the program (SystemExit: {error.code}); what a script does by itself "
        'belongs under if __name__ == "__main__"'
    )
    _line(f"error: {_outside(told, error)}")
    return 2


def _foreign(error: Exception, arguments: Sequence[str]) -> int:
    """Usage errors come from the command-line library; anything else is our fault."""
    show = getattr(error, "format_message", None)
    if isinstance(error, typer.Exit):
        return error.exit_code
    if callable(show):
        if not str(show()):  # nothing was typed but the command, whose help was shown
            return 2
        context = getattr(error, "ctx", None)
        see = f"; see {context.command_path} --help" if context is not None else ""
        _line(f"error: {usage(str(show()), arguments)}{see}")
        return 2
    if isinstance(error, typer.Abort):
        _line("stopped")
        return 130
    if isinstance(error, OSError) and error.errno in _REFUSED:
        _line(f"error: cannot write {error.filename or 'the output'}: {error.strerror}; free space, or write elsewhere")
        return 2
    traceback.print_exception(error)
    _line("error: this is a fault of robustbench-lite, not yours; please report it with the lines above")
    return 1


def _line(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    run()
