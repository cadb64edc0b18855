"""An option that takes one value is refused where it is given twice, in every command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from robustbench_lite.cli.app import Command
from robustbench_lite.cli.main import app
from robustbench_lite.errors import UserError

from .harness import Rbl


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


EVERY = dict(commands(typer.main.get_command(app)))
OPTIONS = [(words, option) for words, command in EVERY.items() for option in command.params]
ONCE = [
    (words, option)
    for words, option in OPTIONS
    if option.param_type_name == "option" and not option.multiple and not option.is_eager and not option.is_flag
]


def test_there_are_many() -> None:
    assert len(EVERY) > 15 and len(ONCE) > 100
    assert all(isinstance(command, Command) for command in EVERY.values())


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_option_with_one_value(words: tuple[str, ...]) -> None:
    for each, option in ONCE:
        if each == words:
            name = max(option.opts, key=len)
            with pytest.raises(UserError) as caught:
                EVERY[words].make_context(words[-1], [name, "1", f"{name}=2"])
            told = f"{name} takes one value, got it twice (1, 2); give it once, or run the command for each"
            assert str(caught.value) == told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("evaluate --eps 0.1 --eps 0.2 --eps=0.3", "--eps takes one value, got it 3 times (0.1, 0.2, 0.3)"),
        ("evaluate --model a --attack pgd --model a", "--model takes one value, got it twice (a, a)"),
        ("evaluate --checks --no-checks", "--checks and --no-checks are both given; give one of them"),
        ("evaluate --no-resume --resume --no-resume", "--no-resume and --resume are both given; give one of them"),
        ("transfer --models a,b --attack pgd --attack fgsm", "--attack takes one value, got it twice (pgd, fgsm)"),
        ("certify --method crown --method interval", "--method takes one value, got it twice (crown, interval)"),
        ("sweep a.toml --leaderboard a --leaderboard b", "--leaderboard takes one value, got it twice (a, b)"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, told: str, rbl: Rbl) -> None:
    assert rbl(*arguments.split()).error.startswith(told)


def test_lists_and_repeated_switches_are_taken(evaluate: Rbl) -> None:
    given = ("--attack-option", "steps=2", "--attack-option", "loss=dlr", "--eps", "0.02")
    assert evaluate(*given, "--json", "--json").json["attack_options"] == "steps=2 loss=dlr"


def test_help_is_help(rbl: Rbl) -> None:
    said = rbl("evaluate", "--help", "--help")
    assert said.code == 0 and "--attack" in said.out
