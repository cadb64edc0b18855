"""A small sweep from end to end: killed and gone on with, not repeated, failing in part, and its table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from robustbench_lite import plan_run
from robustbench_lite.leaderboard import verify
from robustbench_lite.models.weights import read_weights
from robustbench_lite.sweep import running

from ..cli.harness import Rbl

CELLS = 16


class Killed(BaseException):
    """The process is gone."""


def runs(board: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (board / "runs").glob("*.parquet")}


def from_run_files(board: Path) -> pd.DataFrame:
    """One row a run, by nothing but pandas and the JSON inside the files."""
    rows = []
    for path in sorted((board / "runs").glob("*.parquet")):
        said = json.loads(pq.read_schema(path).metadata[b"robustbench_lite"])
        frame = pd.read_parquet(path)
        standing = frame["correct"] & ~frame["success"]
        rows.append(
            {
                "run_id": path.stem,
                "defense": " + ".join(d["name"] for d in said["defenses"]) or "none",
                "seed": said["model"]["recipe"]["seed"],
                "attack_seed": said["seed"],
                "attack": (said["attack"]["name"], said["attack"]["options"].get("steps")),
                "clean": frame["correct"].mean(),
                "robust": standing.mean(),
                "standing": frozenset(frame["index"][standing]),
                "training_seconds": said["costs"]["training_seconds"],
                "forward_ratio": said["costs"]["forward_ratio"],
                "passes": said["costs"]["passes"],
            }
        )
    return pd.DataFrame(rows)


def test_a_sweep_is_killed_goes_on_and_its_table_follows_from_its_runs(
    rbl: Rbl, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, whole = folder / "lb", plan_run.run_plan
    count = [0]

    def killed_in_the_sixth(*arguments: Any, **more: Any) -> Any:
        count[0] += 1
        if count[0] == 6:
            raise Killed
        return whole(*arguments, **more)

    monkeypatch.setattr(running, "run_plan", killed_in_the_sixth)
    with pytest.raises(Killed):
        rbl("sweep", "small.toml", "--leaderboard", board)
    first = runs(board)
    assert len(first) == 5

    count[0] = 100
    after = rbl("sweep", "small.toml", "--leaderboard", board, "--json").json
    assert (after["ran"], after["there"], after["failed"]) == (CELLS - 5, 5, 0)
    every = runs(board)
    assert len(every) == CELLS and {name: every[name] for name in first} == first
    assert verify(board) == []

    asked = count[0]
    again = rbl("sweep", "small.toml", "--leaderboard", board)
    assert (again.code, count[0], runs(board)) == (0, asked, every)
    assert f"0 ran, {CELLS} were there, 0 failed" in again.out

    _the_table_is_that_of_pandas(board)
    _the_same_words_give_the_same_run(rbl, board)
    _only_some_leaves_the_table_whole(rbl, board)


def _the_table_is_that_of_pandas(board: Path) -> None:
    table, own = pd.read_parquet(board / "small.parquet"), from_run_files(board)
    assert set(own["seed"]) == {0, 1} and (own["seed"] == own["attack_seed"]).all()
    assert sorted(run for ids in table["run_ids"] for run in ids) == sorted(own["run_id"])
    for row in table.to_dict("records"):
        made_of = own[own["run_id"].isin(row["run_ids"])].sort_values("seed")
        beside = own[own["defense"] == row["defense"]]
        assert list(row["seeds"]) == list(made_of["seed"]) == [0, 1]
        assert row["robust_accuracy"] == pytest.approx(made_of["robust"].mean())
        assert row["robust_std"] == pytest.approx(made_of["robust"].std())
        assert (row["robust_min"], row["robust_max"]) == (made_of["robust"].min(), made_of["robust"].max())
        assert row["clean_accuracy"] == pytest.approx(made_of["clean"].mean())
        shares = [len(frozenset.intersection(*part["standing"])) / 20 for _, part in beside.groupby("seed")]
        assert row["worst"] == pytest.approx(sum(shares) / 2)
        assert row["worst"] <= row["robust_min"] + (row["robust_max"] - row["robust_min"])
        assert row["training_seconds"] == pytest.approx(made_of["training_seconds"].median())
        assert row["forward_ratio"] == pytest.approx(beside["forward_ratio"].median())
        assert row["passes"] == 1
    attacks = {(row["defense"], row["attack"], row["made_of"]) for row in table.to_dict("records")}
    assert ("bit-depth", "adaptive", "pgd steps=100") in attacks
    assert ("label-smoothing", "adaptive", "apgd-t") in attacks
    assert {attack for defense, attack, _ in attacks if defense == "none"} == {"fgsm", "pgd steps=3"}
    assert all(not mark for mark in table.loc[table["defense"] == "none", "mark"])
    assert all(
        mark.split()[0] in ("helps", "fails", "unclear") for mark in table.loc[table["defense"] != "none", "mark"]
    )
    text = (board / "small.md").read_text("utf-8")
    for row in table.to_dict("records"):
        assert f"{100 * row['robust_accuracy']:.1f} ±{100 * row['robust_std']:.1f}" in text


def _the_same_words_give_the_same_run(rbl: Rbl, board: Path) -> None:
    """What `rbl evaluate` makes of a combination is that run, to the last verdict."""
    said = ("evaluate", "--model", "mlp", "--epochs", "1", "--samples", "20", "--eps", "0.1", "--leaderboard", board)
    for more in (
        ("--steps", "3"),
        ("--attack", "pgd", "--steps", "100", "--defense", "bit-depth", "--defense-option", "bits=3"),
    ):
        before = runs(board)
        outcome = rbl(*said, *more)
        assert outcome.code == 0 and "the same verdicts as the run that was there" in outcome.out
        assert runs(board) == before


def _only_some_leaves_the_table_whole(rbl: Rbl, board: Path) -> None:
    table = pd.read_parquet(board / "small.parquet")
    some = rbl(
        "sweep", "small.toml", "--leaderboard", board, "--only", "defense = none", "--only", "seed=1", "--json"
    ).json
    assert (some["ran"], some["there"]) == (0, 2)
    pd.testing.assert_frame_equal(pd.read_parquet(board / "small.parquet"), table)
    assert len(some["table"]) == len(table)


def test_a_changed_option_runs_anew_and_nothing_else_does(rbl: Rbl, folder: Path, stated: Callable[..., Path]) -> None:
    few = ("--leaderboard", "lb", "--only", "seed = 0", "--only", "attack = fgsm", "--json")
    assert rbl("sweep", "small.toml", *few).json["ran"] == 3
    dry = rbl("sweep", "small.toml", *few, "--dry-run").json
    assert (dry["runs"], dry["there"]) == (3, 3)
    changed = stated("bits = 3", "bits = 2")
    before = runs(folder / "lb")
    dry = rbl("sweep", changed, *few, "--dry-run").json
    assert (dry["runs"], dry["there"], runs(folder / "lb")) == (3, 2, before)
    assert [(row["trained"], row["there"]) for row in dry["networks"]] == [(True, 1), (True, 0), (True, 1)]
    after = rbl("sweep", changed, *few).json
    assert (after["ran"], after["there"]) == (1, 2)


def test_a_dry_run_trains_nothing(rbl: Rbl, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBL_CACHE", str(folder / "own cache"))
    said = rbl("sweep", "small.toml", "--leaderboard", "lb", "--dry-run")
    assert said.code == 0
    # The bare network and the one behind bit-depth are the same.
    assert said.out.splitlines()[-1] == f"{CELLS} runs, 0 of them on lb; 4 trainings to come"
    assert not list(folder.rglob("*.parquet")) and not list(folder.rglob("*.safetensors"))


def test_one_that_fails_is_passed_by_and_told_at_the_end(rbl: Rbl, folder: Path, stated: Callable[..., Path]) -> None:
    (folder / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from robustbench_lite import InferenceDefense\n"
        "from robustbench_lite.errors import UserError\n"
        "@dataclass(frozen=True)\n"
        "class Grumpy(InferenceDefense):\n"
        "    name, summary, source = 'grumpy', 'refuses', 'mine'\n"
        "    adaptive = 'fgsm'\n"
        "    def wrap(self, model):\n"
        "        raise UserError('--defense grumpy: not this network')\n"
    )
    path = stated('{ use = ["bit-depth"], options = { bits = 3 } }', '"mine.py:Grumpy"')
    few = ("--leaderboard", "lb", "--only", "seed = 0", "--only", "attack = fgsm")
    assert "grumpy" in rbl("sweep", path, *few, "--only", "defense = grumpy").err
    said = rbl("sweep", path, *few)
    assert said.code == 2
    assert "2 ran, 0 were there, 1 failed" in said.out
    failures = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    assert failures == ["failed: mlp on digits, grumpy, seed 0, fgsm, linf 0.1: --defense grumpy: not this network"]
    table = pd.read_parquet(folder / "lb" / "changed.parquet")
    assert set(table["defense"]) == {"none", "label-smoothing"}
    assert all(math.isfinite(share) for share in table["robust_accuracy"])


def test_weights_that_do_not_fit_are_told_with_their_key(rbl: Rbl, folder: Path, stated: Callable[..., Path]) -> None:
    (folder / "junk.pt").write_bytes(b"junk")
    path = stated('["mlp"]', '[{ name = "mlp", weights = "junk.pt" }]')
    said = rbl("sweep", path, "--leaderboard", "lb", "--only", "attack = fgsm", "--only", "defense = none")
    assert said.code == 2
    assert "changed.toml: models, mlp: weights: junk.pt is no file that torch.save wrote" in said.err


def test_what_is_no_key_of_the_file_is_told_as_it_is(rbl: Rbl, stated: Callable[..., Path]) -> None:
    assert rbl("sweep", "small.toml", "--workers", "-1").error.startswith("--workers must be")
    path = stated('"fgsm"', '{ name = "transfer:pgd", surrogates = [{ name = "mlp", weights = "junk.pt" }] }')
    said = rbl("sweep", path, "--leaderboard", "lb", "--only", "attack ~ transfer", "--only", "defense = none")
    assert "changed.toml: attacks[1].surrogates: weights: no such file 'junk.pt'" in said.err


def test_two_defenses_of_one_name_are_told(rbl: Rbl, folder: Path, stated: Callable[..., Path]) -> None:
    (folder / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from robustbench_lite import TrainingDefense\n"
        "@dataclass(frozen=True)\n"
        "class A(TrainingDefense):\n"
        "    name, summary, source = 'mine', 'nothing', 'mine'\n"
        "class B(A):\n"
        "    pass\n"
    )
    path = stated('"label-smoothing"', '"mine.py:A", "mine.py:B"')
    assert "mine.py:A and mine.py:B have one name, 'mine'; give one another" in rbl("sweep", path, "--dry-run").error


def test_a_sweep_that_was_stopped_says_that_it_goes_on(rbl: Rbl) -> None:
    few = ("sweep", "small.toml", "--leaderboard", "lb", "--only", "seed = 0", "--only", "defense = none")
    assert "going on" not in rbl(*few, "--only", "attack = fgsm").err
    assert "the first 1 of 2 runs are there; going on\n" in rbl(*few).err
    assert "going on" not in rbl(*few).err


def test_a_wide_terminal_has_a_column_for_each_number(rbl: Rbl, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("sweep", "small.toml", "--leaderboard", "lb", "--only", "attack = fgsm", "--only", "defense = bit-depth")
    monkeypatch.setenv("COLUMNS", "50")
    narrow = rbl(*few).out
    monkeypatch.setenv("COLUMNS", "100")
    wide = rbl(*few).out
    (head,) = (line.split() for line in wide.splitlines() if line.startswith("defense"))
    assert head[:2] == ["defense", "mark"] and head[-3:] == ["seconds", "forward", "passes"]
    assert not any(line.startswith("defense") and "clean" in line for line in narrow.splitlines())
    assert max(len(line) for line in narrow.splitlines() if "results" not in line and "lb" not in line) <= 50
    numbers = {word.strip("[],") for line in narrow.splitlines()[1:] for word in re.findall(r"\d+\.\d+", line)}
    assert numbers <= set(re.findall(r"\d+\.\d+", wide))


def test_nothing_left_by_only_is_told(rbl: Rbl) -> None:
    assert "none of 16 combinations is left" in rbl("sweep", "small.toml", "--only", "model = none").error
    assert "--only: unknown column 'modle'" in rbl("sweep", "small.toml", "--only", "modle = mlp").error


def test_a_transfer_is_from_a_network_of_its_own(rbl: Rbl, folder: Path, stated: Callable[..., Path]) -> None:
    path = stated('"fgsm"', '{ name = "transfer:pgd", surrogates = ["mlp"] }')
    few = ("--only", "seed = 0", "--only", "attack ~ transfer", "--only", "defense = none")
    assert rbl("sweep", path, "--leaderboard", "lb", *few).code == 0
    (file,) = (folder / "lb" / "runs").glob("*.parquet")
    said = json.loads(pq.read_schema(file).metadata[b"robustbench_lite"])
    (surrogate,) = said["attack"]["resolved"]["surrogates"]
    assert surrogate["name"] == "mlp" and surrogate["sha256"] != said["model"]["sha256"]


def test_a_file_that_a_defense_names_is_trained_for_it_alone(
    rbl: Rbl, folder: Path, stated: Callable[..., Path]
) -> None:
    named = '{ use = ["ensemble-adversarial-training"], options = { eps = "threat", models = "own/net.safetensors" } }'
    path = stated('"label-smoothing"', named)
    path.write_text(f'{path.read_text()}\n[[files]]\nfile = "own/net.safetensors"\nmodel = "mlp"\nseed = 7\n')
    few = ("--leaderboard", "lb", "--only", "seed = 0", "--only", "attack = fgsm", "--json")
    assert rbl("sweep", path, *few, "--only", "defense = none").json["ran"] == 1
    assert not (folder / "own").exists()
    dry = rbl("sweep", path, *few, "--dry-run").json
    assert [row["trained"] for row in dry["networks"]] == [True, True, False]
    assert rbl("sweep", path, *few).json["ran"] == 2
    assert read_weights(folder / "own" / "net.safetensors")[1]["recipe"]["seed"] == 7
    again = rbl("sweep", path, *few).json
    assert (again["ran"], again["there"]) == (0, 3)


def test_several_attacks_are_run_as_one(rbl: Rbl, stated: Any, folder: Path) -> None:
    path = stated('"fgsm"', '{ name = "fgsm + pgd", options = { pgd.steps = 3 } }')
    few = ("--only", "defense = none", "--only", "seed = 0")
    said = rbl("sweep", path, "--leaderboard", "lb", *few, "--json").json
    assert (said["ran"], said["failed"]) == (2, 0)
    worst, alone = {row["attack"]: row["robust_accuracy"] for row in said["table"]}.values()
    assert {row["attack"] for row in said["table"]} == {"fgsm + pgd pgd.steps=3", "pgd steps=3"} and worst <= alone
    assert rbl("sweep", path, "--leaderboard", "lb", *few, "--json").json["there"] == 2
    words = ("--dataset", "digits", "--samples", "20", "--model", "mlp", "--epochs", "1", "--eps", "0.1")
    both = ("--attack", "fgsm", "--attack", "pgd", "--attack-option", "pgd.steps=3")
    again = rbl("evaluate", *words, *both, "--leaderboard", "lb", "--json").json
    assert len(runs(folder / "lb")) == 2 and again["robust_accuracy"] == worst
