"""Options as text made into typed fields: what is read, and what is refused in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_lite.errors import UserError
from robustbench_lite.options import configure, option_types, parse_number, parse_pairs


@dataclass(frozen=True)
class Thing:
    name: ClassVar[str] = "thing"

    steps: int = 10
    eps: float = 0.1
    label: str = "a"
    fast: bool = False
    step_size: float | None = None
    loss: Literal["ce", "dlr"] = "ce"
    made: int = field(default=3, init=False)


@dataclass(frozen=True)
class Needy:
    level: int
    also: str


FINITE = st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.text(st.characters(categories=["Ll", "Nd"], include_characters="_"), min_size=1)


@given(FINITE)
def test_a_number_as_text_is_that_number(value: float) -> None:
    assert parse_number("eps", repr(value)) == value
    assert parse_number("eps", value) == value


@given(st.integers(-10_000, 10_000), st.integers(1, 10_000))
def test_a_fraction_is_the_nearest_float(top: int, bottom: int) -> None:
    assert parse_number("eps", f"{top}/{bottom}") == float(Fraction(top, bottom))
    assert parse_number("eps", f" {top} / {bottom} ") == float(Fraction(top, bottom))


@given(st.text())
def test_any_text_is_a_finite_number_or_one_line_that_names_the_argument(text: str) -> None:
    said = ""
    try:
        value = parse_number("eps", text)
    except UserError as error:
        said, value = str(error), 0.0
    assert math.isfinite(value)
    assert not said or (said.startswith("eps must be a ") and len(said.splitlines()) == 1)


@pytest.mark.parametrize("text", ["", "x", "1/0", "nan", "inf", "-inf", "1e999", "1/2/3", "8\\255", "1,5"])
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^eps must be a"):
        parse_number("eps", text)


@given(st.dictionaries(KEYS, st.text(st.characters(exclude_categories=["C", "Z"])), max_size=5))
def test_pairs_come_back_as_they_were_given(options: dict[str, str]) -> None:
    assert parse_pairs("--option", [f"{key}={value}" for key, value in options.items()]) == options


def test_pairs_with_dashes_spaces_and_equals_signs() -> None:
    assert parse_pairs("--option", ["step-size = 0.1", "url=a=b", "empty="]) == {
        "step_size": "0.1",
        "url": "a=b",
        "empty": "",
    }


@pytest.mark.parametrize(
    ("pairs", "words"),
    [(["steps"], "must be KEY=VALUE, got 'steps'"), (["=3"], "KEY=VALUE"), (["a=1", "a=2"], "a is given twice")],
)
def test_pairs_that_are_none(pairs: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse_pairs("--option", pairs)
    assert str(caught.value).startswith("--option")


def test_a_key_in_two_spellings_is_given_twice() -> None:
    with pytest.raises(UserError, match="step_size is given twice"):
        parse_pairs("--option", ["step-size=1", "step_size=2"])


def test_the_options_of_a_class_leave_out_what_is_not_given() -> None:
    assert list(option_types(Thing)) == ["steps", "eps", "label", "fast", "step_size", "loss"]


@given(
    steps=st.integers(-(2**53), 2**53),
    eps=FINITE,
    label=st.text(),
    fast=st.booleans(),
    step_size=st.none() | FINITE,
    loss=st.sampled_from(["ce", "dlr"]),
)
def test_text_makes_the_same_thing_as_values(
    steps: int, eps: float, label: str, fast: bool, step_size: float | None, loss: Literal["ce", "dlr"]
) -> None:
    values = {"steps": steps, "eps": eps, "label": label, "fast": fast, "step_size": step_size, "loss": loss}
    thing = Thing(steps=steps, eps=eps, label=label, fast=fast, step_size=step_size, loss=loss)
    assert configure(Thing, values) == thing
    assert configure(Thing, {key: str(value) for key, value in values.items()}) == thing


def test_nothing_given_is_the_defaults() -> None:
    assert configure(Thing) == configure(Thing, {}) == Thing()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stpes": 3}, "option: thing has no option 'stpes'; did you mean steps"),
        ({"name": "other"}, "thing has no option 'name'"),
        ({"made": 4}, "thing has no option 'made'"),
        ({"steps": "3.5"}, "option steps must be a whole number, got '3.5'"),
        ({"steps": "many"}, "option steps must be a whole number"),
        ({"steps": None}, "option steps must be a whole number"),
        ({"eps": "nan"}, "option eps must be a finite number"),
        ({"eps": "none"}, "option eps must be a number"),
        ({"step_size": "small"}, "option step_size must be a number"),
        ({"fast": "perhaps"}, "option fast must be true or false, got 'perhaps'"),
        ({"loss": "mse"}, "option loss must be one of ce, dlr, got 'mse'"),
        ({"label": 3}, "option label must be text, got 3"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        configure(Thing, options)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("ON", True), ("1", True), ("No", False), ("off", False)])
def test_the_words_for_truth(text: str, value: bool) -> None:
    assert configure(Thing, {"fast": text}).fast is value


def test_what_a_class_needs_is_named() -> None:
    with pytest.raises(UserError, match="Needy needs level, also"):
        configure(Needy)
    with pytest.raises(UserError, match="Needy needs also"):
        configure(Needy, {"level": 3})
    assert configure(Needy, {"level": "3", "also": "x"}) == Needy(3, "x")


def test_the_argument_is_named_as_it_was_asked() -> None:
    with pytest.raises(UserError, match=r"^--attack-option steps must be"):
        configure(Thing, {"steps": "x"}, argument="--attack-option")
