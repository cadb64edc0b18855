"""Every built-in attack and defense keeps its contract; one that is added is a case by itself."""

from __future__ import annotations

import pytest

from robustbench_lite import registry
from robustbench_lite.conformance import check_attack, check_defense, failed
from robustbench_lite.portfolio import Portfolio

# Of attacks that take long with their defaults, less of everything.
OPTIONS: dict[str, dict[str, object]] = {
    "a3": {"rounds": 4, "least": 2},
    "cw": {"searches": 4, "steps": 30},
    "ead": {"searches": 4, "steps": 25},
    "fab": {"steps": 10},
    "fab-t": {"steps": 6, "classes": 2},
    "fmn": {"steps": 30},
    "gen-attack": {"steps": 30},
    "boundary": {"steps": 20, "proposals": 2, "tries": 30},
    "geoda": {"steps": 2, "directions": 5, "tries": 10},
    "adversarial-patch": {"steps": 5},
    "substitute": {"images": 8, "rounds": 2, "epochs": 2, "width": 4},
    "uap": {"epochs": 3},
    "hop-skip-jump": {"steps": 2, "directions": 5, "tries": 10},
    "sign-opt": {"steps": 2, "directions": 5, "starts": 3, "tries": 10},
    "lbfgs": {"searches": 2, "steps": 3, "c": 1.0},
    "nes": {"steps": 8, "samples": 6},
    "pointwise": {"steps": 60, "tries": 30},
    "sigma-zero": {"steps": 40},
    "one-pixel": {"steps": 8, "population": 10},
    "spsa": {"steps": 8, "samples": 10},
    "vmi-fgsm": {"neighbours": 4},
    "vni-fgsm": {"neighbours": 4},
    "zoo": {"steps": 12, "searches": 2, "coordinates": 10, "c": 10.0, "step_size": 0.3},
}


@pytest.mark.parametrize("name", sorted(registry.builtins("attacks")))
def test_attack(name: str) -> None:
    attack = registry.load("attacks", name)
    checks = check_attack(attack, options=OPTIONS.get(name))
    assert not failed(checks)
    alone = {"ball and box", "rows", "counts", "resume", "success"}
    assert ({"parts", "rows"} if issubclass(attack, Portfolio) else alone) <= {check.name for check in checks}


@pytest.mark.parametrize("name", sorted(registry.builtins("defenses")))
def test_defense(name: str) -> None:
    checks = check_defense(registry.load("defenses", name))
    assert not failed(checks)
    assert {"rows", "global random state", "evaluation"} <= {check.name for check in checks}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pgd", {"momentum": 0.9, "steps": 5}),
        ("pgd", {"random_start": False, "loss": "dlr", "steps": 5}),
        ("pgd", {"restarts": 3, "loss": "margin", "steps": 3}),
        ("noise", {"distribution": "gaussian"}),
    ],
)
def test_attack_with_options(name: str, options: dict[str, object]) -> None:
    assert not failed(check_attack(registry.load("attacks", name), options=options))


def test_defense_with_options() -> None:
    assert not failed(check_defense(registry.load("defenses", "bit-depth"), options={"bits": 8}))
    assert not failed(check_defense(registry.load("defenses", "random-noise"), options={"sigma": 0.02}))
