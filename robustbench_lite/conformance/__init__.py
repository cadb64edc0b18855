"""What every attack and every defense must pass; the tests and `rbl attacks|defenses check` run the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..attack import Attack
from ..defense import Defense, InferenceDefense, TrainingDefense
from ..errors import UserError
from ..options import configure
from ..portfolio import Portfolio
from .attack import check_behaviour, check_declared
from .check import Check, Checks, Failed, check_description, failed, plural
from .inference import check_inference
from .portfolio import check_portfolio
from .samples import SHAPES, Shape
from .training import check_training

__all__ = ["SHAPES", "Check", "Shape", "check_attack", "check_defense", "failed"]

T = TypeVar("T")


def check_attack(
    attack: Attack | type[Attack], *, options: Mapping[str, Any] | None = None, shapes: Sequence[Shape] = SHAPES
) -> list[Check]:
    """Whether an attack keeps its contract; what it raises becomes a failed check.

    attack: an instance, or a class that is made with `options`. shapes: (C, H, W) of the images used,
    the first for most checks. Raises UserError for options that the class refuses.
    """
    checks = Checks(_class_of(attack))
    if not checks.run("description", lambda: _describe(_class_of(attack), Attack, "robustbench_lite.Attack")):
        return checks.done
    made = _make(attack, options, checks)
    if isinstance(made, Portfolio):
        check_portfolio(made, checks, shapes[0])
    elif made is not None and checks.run("declaration", lambda: check_declared(made)):
        check_behaviour(made, checks, shapes)
    return checks.done


def check_defense(
    defense: Defense | type[Defense], *, options: Mapping[str, Any] | None = None, shapes: Sequence[Shape] = SHAPES
) -> list[Check]:
    """Whether a defense keeps its contract and what it states of itself is true; as `check_attack`."""
    cls = _class_of(defense)
    checks = Checks(cls)
    if not checks.run("description", lambda: _describe_defense(cls)):
        return checks.done
    made = _make(defense, options, checks)
    if isinstance(made, InferenceDefense):
        check_inference(made, checks, shapes)
    elif isinstance(made, TrainingDefense):
        check_training(made, checks, shapes)
    return checks.done


def _class_of(thing: Any) -> type:
    return thing if isinstance(thing, type) else type(thing)


def _describe(cls: type, base: type, hint: str) -> str:
    check_description(cls, base=base, hint=hint)
    return f"{getattr(cls, 'name', '')}: {getattr(cls, 'summary', '')}"


def _describe_defense(cls: type) -> str:
    if not issubclass(cls, (InferenceDefense, TrainingDefense)):
        raise Failed(
            f"{cls.__name__} is no subclass of robustbench_lite.InferenceDefense or robustbench_lite.TrainingDefense"
        )
    return _describe(cls, Defense, "robustbench_lite.Defense")


def _make(thing: T | type[T], options: Mapping[str, Any] | None, checks: Checks) -> T | None:
    """An instance; None, and a failed check, where it cannot be made without options."""
    if not isinstance(thing, type):
        return thing
    made: list[T] = []

    def construct() -> str:
        made.append(configure(thing, options, argument="--option"))
        fields = [f.name for f in dataclasses.fields(thing) if f.init]  # type: ignore[arg-type]
        return f"{plural(len(fields), 'option')}{': ' if fields else ''}{', '.join(fields)}"

    refused: list[UserError] = []

    def guarded() -> str:
        try:
            return construct()
        except UserError as error:
            refused.append(error)
            raise

    checks.run("options", guarded)
    if refused and options:
        raise refused[0]  # The caller's options are the caller's to mend, not a fault of the plug-in.
    return made[0] if made else None
