"""The application class of every command: an option that takes one value is refused where it is given twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from ..errors import UserError


class Command(TyperCommand):
    """A command whose options count once, but for those that are lists."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line.

        Raises:
            UserError: For an option with one value that is given more than once, of which the last would count.
        """
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option, count in Counter(order).items():
            if count > 1 and option.param_type_name == "option" and not option.multiple and not option.is_eager:
                check_once(option, args)
        return super().parse_args(ctx, args)


class App(typer.Typer):
    """A Typer application whose commands are of the class `Command`."""

    def command(self, *names: Any, **settings: Any) -> Callable[[Any], Any]:
        """As Typer's."""
        return super().command(*names, **{"cls": Command, **settings})


def check_once(option: Any, args: Sequence[str]) -> None:
    """Raise UserError where `args` give this option several values, or a switch both ways."""
    given = list(_given(option, args))
    words, values = [word for word, _ in given], [value for _, value in given]
    name = max(option.opts, key=len)
    if option.is_flag:
        if len(set(words)) > 1:
            raise UserError(f"{' and '.join(dict.fromkeys(words))} are both given; give one of them")
        return
    times = "twice" if len(values) == 2 else f"{len(values)} times"
    raise UserError(
        f"{name} takes one value, got it {times} ({', '.join(values)}); give it once, or run the command for each"
    )


def _given(option: Any, args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """How the option is written each time, and the value behind it."""
    names = {*option.opts, *option.secondary_opts}
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in names:
            yield name, value if equals else following
