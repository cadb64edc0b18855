"""What a person writes wrong in a sweep is told in one line, with file and key."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_lite.errors import UserError
from robustbench_lite.sweep import read_sweep

from ..cli.harness import Rbl

OLD = 'datasets = ["digits"]'


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (OLD, "", ["datasets must be given: a list"]),
        (OLD, "datasets = []", ["datasets must have at least one entry"]),
        (OLD, "datasets = [3]", ["datasets[1] must be text or a table, got 3"]),
        (OLD, 'datasets = ["digit"]', ["digit", "did you mean digits?"]),
        (OLD, f"{OLD}\nsample = 3", ["unknown key 'sample'", "did you mean samples"]),
        (OLD, "datasets = ", ["no TOML", "line 2"]),
        ("samples = 20", "samples = 0", ["samples must be >= 1, got 0"]),
        ("samples = 20", "samples = 400", ["changed.toml: datasets, digits: samples: must be in 1..360", "400"]),
        ("samples = 20", 'samples = "all"', ["samples must be a whole number, got 'all'"]),
        ("[0, 1]", "[0, 0]", ["seeds has one of them twice"]),
        ("[0, 1]", "[-1]", ["seeds must be a list of whole numbers >= 0"]),
        ('["mlp"]', '["mpl"]', ["models[1].name", "did you mean mlp?"]),
        ('["mlp"]', '[{ name = "mlp", weight = "x.pt" }]', ["unknown key 'models[1].weight'", "did you mean weights?"]),
        ('["linf 0.1"]', '["l7 0.1"]', ["threats[1]", "l7"]),
        ('["linf 0.1"]', '[{ norm = "linf", eps = "much" }]', ["threats[1]", "eps", "much"]),
        (
            '"label-smoothing"]',
            '"label-smoothing"]\nthreats = ["l0 3"]',
            ["of label-smoothing", "apgd-t", "l0"],
        ),
        ('"fgsm"', '"fsgm"', ["attacks[1]", "did you mean fgsm?"]),
        ("{ steps = 3 }", "{ step = 3 }", ["attacks[2]", "step", "did you mean"]),
        ('"fgsm"', '"transfer:pgd"', ["attacks[1].surrogates must be given for transfer:pgd"]),
        ('"fgsm"', '{ name = "pgd", surrogates = ["mlp"] }', ["attacks[1]", "transfer:pgd"]),
        ('"fgsm"', '"corruptions"', ["attacks[1]", "limits of its own"]),
        ('"adaptive"', '{ name = "adaptive", options = { steps = 3 } }', ["attacks[3]", "each defense states"]),
        ('["bit-depth"]', '["bit-deph"]', ["defenses[2].use", "did you mean bit-depth?"]),
        (
            '["bit-depth"], options = { bits = 3 }',
            '["mart", "mixup"]',
            ["defenses[2].use", "mart takes the place of the loss behind it"],
        ),
        ('["bit-depth"]', '["bit-depth", "knn"]', ["defenses[2].use", "knn learns", "give it before bit-depth"]),
        (OLD, f"{OLD}\nvotes = 0", ["votes must be >= 1, got 0"]),
        (OLD, f'{OLD}\nchecks = "no"', ["checks must be true or false, got 'no'"]),
        ('"fgsm"', '{ name = "fgsm", norms = ["l7"] }', ["attacks[1].norms must be of linf, l2, l1, l0, got 'l7'"]),
        ("bits = 3", "bit = 3", ["defenses[2].options", "unknown option 'bit'", "did you mean bits?"]),
        ("bits = 3", "bits = 40", ["defenses[2].options", "bits must be in 1..16, got 40"]),
        ("bits = 3", 'bits = "threat"', ["defenses[2].options", "bits must be a whole number, got 'threat'"]),
        ("epochs = 1", "epoch = 1", ["changed.toml: recipe: ", "epoch", "did you mean epochs?"]),
        ("epochs = 1", 'lr = "fast"', ["changed.toml: recipe: lr must be a number"]),
        ("epochs = 1", "epochs = -1", ["changed.toml: recipe: epochs must be at least 1, got -1"]),
        ("epochs = 1", "seed = 1", ["recipe.seed is what seeds are for"]),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    old: str, new: str, words: list[str], stated: Callable[..., Path], rbl: Rbl, folder: Path
) -> None:
    path = stated(old, new)
    if "threats" in new:
        path.write_text(path.read_text().replace('threats = ["linf 0.1"]\n', "", 1))
    error = rbl("sweep", path, "--leaderboard", "lb").error
    assert error.startswith("changed.toml: "), error
    assert [word for word in words if word not in error] == [], error
    assert "--defense" not in error and "--model" not in error
    assert not (folder / "lb").exists()


def test_a_file_that_is_not_there(rbl: Rbl) -> None:
    assert "'missing.toml' cannot be read" in rbl("sweep", "missing.toml").error


def test_defenses_stand_in_the_order_that_their_options_allow(stated: Callable[..., Path]) -> None:
    path = stated('["bit-depth"]', '["bit-depth", "mine.py:Learning"]')
    (path.parent / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from robustbench_lite.defense import InferenceDefense\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Learning(InferenceDefense):\n"
        "    name = 'learning'\n"
        "    adaptive = 'pgd'\n"
        "    samples: int = 5\n\n"
        "    @property\n"
        "    def fit_samples(self):\n"
        "        return self.samples\n"
    )
    with pytest.raises(UserError, match=r"defenses\[2\]\.use: learning learns .* give it before bit-depth"):
        _ = read_sweep(path).cells
    path.write_text(path.read_text().replace("bits = 3", "bits = 3, samples = 0"))
    assert "bit-depth + learning" in {cell.row["defense"] for cell in read_sweep(path).cells}


def test_a_sweep_without_a_run(rbl: Rbl, folder: Path) -> None:
    (folder / "none.toml").write_text(
        'datasets = ["digits"]\nmodels = ["mlp"]\nthreats = ["linf 0.1"]\ndefenses = ["none"]\n'
        'attacks = ["adaptive", { name = "pgd", norms = ["l2"] }]\n'
    )
    assert rbl("sweep", "none.toml").error.startswith("none.toml: attacks: none is left for linf")


def test_short_and_long_forms_say_the_same(stated: Callable[..., Path]) -> None:
    short = read_sweep(stated())
    long = stated('["linf 0.1"]', '[{ norm = "linf", eps = "1/10" }]').read_text()
    long = long.replace('"fgsm",', '{ name = "fgsm" },').replace('"label-smoothing"', '{ use = ["label-smoothing"] }')
    path = stated()
    path.write_text(long)
    assert [str(cell) for cell in read_sweep(path).cells] == [str(cell) for cell in short.cells]


def test_every_combination_once_and_bare_networks_face_no_adaptive_attack(stated: Callable[..., Path]) -> None:
    rows = [cell.row for cell in read_sweep(stated()).cells]
    found = sorted((row["defense"], row["attack"], row["seed"]) for row in rows)
    expected = [
        (defense, attack, seed)
        for defense, attacks in (
            ("bit-depth", ("fgsm", "pgd", "pgd")),
            ("label-smoothing", ("apgd-t", "fgsm", "pgd")),
            ("none", ("fgsm", "pgd")),
        )
        for attack in attacks
        for seed in (0, 1)
    ]
    assert found == sorted(expected)
    # One network after another, so that each is loaded once.
    networks = [cell.network for cell in read_sweep(stated()).cells]
    assert sum(a != b for a, b in itertools.pairwise(networks)) == len(set(networks)) - 1


def test_an_adaptive_attack_that_is_named_too_runs_once(stated: Callable[..., Path]) -> None:
    same = read_sweep(stated("{ steps = 3 }", "{ steps = 100 }")).cells
    of_bits = [cell.attack.label for cell in same if cell.row["defense"] == "bit-depth" and cell.seed == 0]
    assert of_bits == ["fgsm", "pgd steps=100"]


def test_an_option_may_be_the_threats_own(stated: Callable[..., Path]) -> None:
    path = stated('["linf 0.1"]', '["linf 0.1", "l2 0.5"]')
    stacked = '{ use = ["awp", "trades"], options.trades = { eps = "threat", norm = "threat" } }'
    text = path.read_text().replace('"label-smoothing"', stacked)
    path.write_text(text)
    defenses = {
        (cell.threat.norm, cell.threat.eps): cell.defenses[1]
        for cell in read_sweep(path).cells
        if cell.defense.use == ("awp", "trades")
    }
    assert {key: (d.norm, d.eps) for key, d in defenses.items()} == {  # type: ignore[attr-defined]
        ("linf", 0.1): ("linf", 0.1),
        ("l2", 0.5): ("l2", 0.5),
    }
