"""What a command prints of its number: the word, the reason, and what to run next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robustbench_lite.records import read_run

from .harness import Rbl

MARGIN = ("--loss", "margin", "--eps", "0.02")
SMOOTH = (
    "certify",
    "--model",
    "nets.py:make",
    "--dataset",
    "npz:ok.npz",
    "--method",
    "smoothing",
    "--leaderboard",
    "lb",
)
VOTE = ("--defense", "randomized-smoothing", "--defense-option", "sigma=0.1")


@pytest.mark.parametrize("order", ["off on", "on off"])
def test_a_run_with_checks_completes_one_without(order: str, evaluate: Rbl, rbl: Rbl) -> None:
    said = {}
    for word in order.split():
        said[word] = evaluate(*MARGIN, *(["--no-checks"] if word == "off" else []))
    assert "verdict          unchecked\n  next step        run the same command without --no-checks" in said["off"].out
    assert "verdict          reliable" in said["on"].out and "next step" not in said["on"].out
    assert ("whose missing sanity checks were added" in said["on"].out) == (order == "off on")
    (row,) = rbl("leaderboard", "show", "--leaderboard", "lb", "--format", "csv").out.splitlines()[1:]
    assert ",reliable," in row
    assert rbl("leaderboard", "verify", "--leaderboard", "lb").code == 0


def test_the_record_and_json_say_which_checks_ran(evaluate: Rbl) -> None:
    r = evaluate(*MARGIN, "--json").json
    assert r["checks"]["asked"] and r["checks"]["images"] > 0 and "black box" in r["checks"]["after"]
    stored = read_run(r["run_file"]).specification.checks
    assert stored is not None and list(stored.after) == r["checks"]["after"]


def test_shards_are_judged_when_they_are_put_together(evaluate: Rbl, folder: Path, rbl: Rbl) -> None:
    with np.load(folder / "ok.npz") as data:
        np.savez(folder / "shifted.npz", images=data["images"], labels=(data["labels"] + 1) % 4)
    for part in ("1/2", "2/2"):
        said = evaluate("--dataset", "npz:shifted.npz", "--shard", part, "--steps", "2")
    assert "invalid: clean accuracy is" in said.out
    assert "invalid" in rbl("leaderboard", "show", "--leaderboard", "lb").out


def test_a_table_explains_the_words_that_are_no_mistake(evaluate: Rbl, rbl: Rbl) -> None:
    said = evaluate("--attack", "fgsm", "--eps", "0.02")
    assert "verdict          upper bound: a single step\n  next step        --attack auto" in said.out
    assert evaluate("--attack", "noise", "--eps", "0.02").code == 0
    shown = " ".join(rbl("leaderboard", "show", "--leaderboard", "lb").out.split())
    assert shown.count("upper bound: the attack does not search for the worst case") == 1


def test_the_share_without_a_target_is_printed(evaluate: Rbl, folder: Path) -> None:
    with np.load(folder / "ok.npz") as data:
        images, labels = data["images"], data["labels"]
    own = labels == 1
    np.savez(folder / "ones.npz", images=images[own], labels=labels[own], n_classes=4)
    said = evaluate("--dataset", "npz:ones.npz", "--target", "1", "--steps", "2")
    assert "of the images, their class is the target 1; they count as robust" in said.out
    assert "verdict          invalid: all" in said.out and "so nothing was attacked" in said.out
    assert "next step        take another --target" in said.out
    r = evaluate("--target", "1", "--steps", "2", "--json").json
    assert 0 < r["not_attackable"] < 0.5 and r["robust_accuracy"] >= r["not_attackable"]


def test_a_limit_that_leaves_no_query_is_refused(evaluate: Rbl) -> None:
    assert evaluate("--max-queries", "2").error == (
        "--max-queries must be >= 3, got 2: the clean image and the verification take 1 each, and one query of the "
        "attack 1"
    )
    assert not Path("lb").exists()


@pytest.mark.parametrize(("n", "alpha", "least"), [(5, "0.001", 10), (9, "0.001", 10), (1, "0.5", 2), (3, "0.1", 4)])
def test_votes_that_prove_nothing_are_refused(n: int, alpha: str, least: int, rbl: Rbl) -> None:
    said = rbl(*SMOOTH, *VOTE, "--n", f"{n}", "--alpha", alpha)
    assert said.error.startswith(f"--n must be >= {least} for alpha {alpha}, got {n}: ")
    assert rbl(*SMOOTH, *VOTE, "--n", f"{least}", "--alpha", alpha, "--n0", "5", "--eps", "0.001").code == 0


def test_an_eps_beyond_every_radius_is_warned_of(rbl: Rbl) -> None:
    few = ("--n", "20", "--n0", "5")
    assert "warning: eps 0.3 is above 0.0547, the largest radius" in rbl(*SMOOTH, *VOTE, *few, "--eps", "0.3").err
    assert "is above" not in rbl(*SMOOTH, *VOTE, *few, "--eps", "0.05").err
    assert "warning: eps is 0: certified accuracy" in rbl(*SMOOTH, *VOTE, *few, "--eps", "0").err


def test_a_sweep_with_checks_completes_one_without(rbl: Rbl, folder: Path) -> None:
    text = """
datasets = ["npz:ok.npz"]
models = ["nets.py:make"]
threats = ["linf 0.02"]
attacks = [{ name = "pgd", options = { loss = "margin" } }]
defenses = ["none"]
"""
    ran = []
    for checks in ("false", "true", "false", "true"):
        (folder / "one.toml").write_text(f"checks = {checks}\n{text}", "utf-8")
        ran.append(rbl("sweep", "one.toml", "--leaderboard", "lb", "--json").json["ran"])
    assert ran == [1, 1, 0, 0]
    (file,) = (folder / "lb" / "runs").glob("*.parquet")
    assert read_run(file).specification.verdict == "reliable"
