"""`rbl evaluate` with several attacks: the worst case of each image, what each attack did, and what cannot be mixed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from robustbench_lite.leaderboard import verify as verify_board
from robustbench_lite.records.run import read_run

from .harness import Rbl, listing, rows
from .test_interrupted import _stopped_after

BOTH = ("--attack", "fgsm", "--attack", "pgd", "--attack-option", "pgd.steps=5", "--eps", "0.02")


def test_the_worst_case_is_that_of_each_image(evaluate: Rbl) -> None:
    said = evaluate(*BOTH, "--json").json
    alone = [
        evaluate("--attack", *attack, "--eps", "0.02", "--json").json["run_file"]
        for attack in (("fgsm",), ("pgd", "--steps", "5"))
    ]
    either = [a["success"] or b["success"] for a, b in zip(*map(rows, alone), strict=True)]
    assert [row["success"] for row in rows(said["run_file"])] == either and any(either)
    assert (said["attack"], said["attack_options"]) == ("fgsm + pgd", "pgd.steps=5")
    first, second = said["by_attack"]
    assert (first["attack"], second["attack"], second["options"]) == ("fgsm", "pgd", "steps=5")
    assert second["images"] == first["images"] - first["successes"]
    assert second["surviving"] == said["robust_accuracy"] <= first["surviving"]


def test_what_is_printed(evaluate: Rbl) -> None:
    said = evaluate(*BOTH)
    lines = said.out.splitlines()
    assert "attack fgsm + pgd, linf 0.02, 24 images" in lines[0]
    assert any("robust accuracy" in line and line.endswith(", worst case of 2 attacks") for line in lines)
    head = next(number for number, line in enumerate(lines) if line.split()[:2] == ["in", "turn"])
    assert lines[head].split()[2:] == ["images", "successes", "surviving", "forwards", "backwards"]
    assert [line.split()[0] for line in lines[head + 1 : head + 3]] == ["fgsm", "pgd"]
    assert len({len(line) for line in lines[head : head + 3]}) == 1, "aligned"
    assert "fgsm + pgd: 2 attacks in turn, each on the images that survive those before it" in said.err


def test_a_minimum_norm_attack_among_them_is_told(evaluate: Rbl) -> None:
    said = evaluate("--attack", "fgsm", "--attack", "deepfool", "--eps", "0.02")
    assert "deepfool: stops at the first image within eps" in said.err and "median" not in said.out


def test_one_attack_is_as_before(evaluate: Rbl) -> None:
    said = evaluate("--attack", "fgsm", "--eps", "0.02", "--json").json
    assert "by_attack" not in said and said["attack"] == "fgsm"
    assert evaluate("--eps", "0.02", "--steps", "3", "--json").json["attack"] == "pgd", "by default"


def test_it_is_verified_and_stands_on_the_leaderboard(evaluate: Rbl, rbl: Rbl) -> None:
    said = evaluate(*BOTH, "--save-examples", "out.npz", "--json").json
    found = rbl("verify", said["run_id"], "--model", "nets.py:make", "--leaderboard", "lb")
    assert (found.code, "all confirmed" in found.out) == (0, True)
    assert verify_board("lb") == []
    table = rbl("leaderboard", "show", "--leaderboard", "lb", "--format", "markdown").out
    assert "| fgsm + pgd pgd.steps=5 |" in table
    assert evaluate(*BOTH, "--json").json["run_id"] == said["run_id"]


@pytest.mark.parametrize("calls", [8, 25, 60])
def test_a_stopped_run_goes_on_with_the_same_rows(
    calls: int, evaluate: Rbl, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    third = ("--attack", "square", "--attack-option", "square.steps=12")
    slow = (*BOTH, *third, "--model", "nets.py:slow", "--batch-size", "4", "--no-checks")
    whole = evaluate(*slow, "--leaderboard", "whole", "--json").json
    with _stopped_after(calls, monkeypatch, signal.SIGINT):
        assert evaluate(*slow).code == 130
    again = evaluate(*slow, "--json")
    assert "an unfinished run goes on" in again.err
    assert rows(again.json["run_file"]) == rows(whole["run_file"])
    one, other = (read_run(each["run_file"]).specification.by_attack for each in (again.json, whole))
    assert one == other and one[2].images > 0
    assert listing(folder / "lb") == {"leaderboard.parquet", f"runs/{again.json['run_id']}.parquet"}


MISTAKES = [
    ("--attack pgd --attack pgd", "--attack: pgd is given twice with the same options; leave one out, or"),
    ("--attack pgd --attack pgd", "as --attack-option pgd-2.NAME=VALUE"),
    ("--attack pgd,square", "--attack: expected one name, got 'pgd,square'; give several one by one: --attack pgd"),
    ("--attack pgd --attack pgdd", "--attack: unknown name 'pgdd'; did you mean pgd"),
    ("--attack pgd --attack square --steps 5", "--steps: pgd and square both have it; say which, as --attack-option"),
    ("--attack pgd --attack square --attack-option steps=5", "--attack-option steps: pgd and square both have it"),
    ("--attack fgsm --attack noise --steps 5", "--steps: unknown option 'steps'; known: distribution"),
    ("--attack fgsm --attack pgd --steps 0", "--steps must be >= 1, got 0"),
    (
        "--attack pgd --attack square --attack-option pgd.steps=5 --attack-option square.steps=0",
        "--attack-option square.steps must be >= 1, got 0",
    ),
    ("--attack pgd --attack square --attack-option sqare.steps=5", "--attack-option: no attack 'sqare'; did you mean"),
    ("--attack pgd --attack square --attack-option square.step=5", "square has no option 'step'; did you mean steps"),
    ("--attack pgd --attack noise --attack-option pgd.loss=cee", "--attack-option pgd.loss: unknown name 'cee'"),
    ("--attack pgd --attack pgd --attack-option pgd.steps=5", "--attack-option: no attack 'pgd'; did you mean pgd-"),
    (
        "--attack fgsm --attack pgd --steps 5 --attack-option pgd.steps=4",
        "--attack-option pgd.steps: it is given twice",
    ),
    ("--attack pgd --attack spatial", "--attack: expected attacks of one threat, got spatial with limits of its own"),
    ("--attack one-pixel --attack ddn", "--attack: expected attacks with a norm in common, got one-pixel: l0; ddn: l2"),
    ("--attack pgd --attack ddn --norm linf", "--norm of attack ddn: unknown name 'linf'; known: l2"),
    ("--attack pgd --attack fab-t --target next", "--target: attack fab-t cannot aim at a class; leave it out"),
    ("--attack spatial --attack fooling", "--attack: fooling does not end at a success; evaluate it alone"),
    ("--attack spatial --attack sticker --eps 0.1", "attack spatial + sticker has limits of its own"),
    ("--attack pgd --attack fgsm --surrogate mlp", "--surrogate: none of the attacks is a transfer"),
    ("--attack fgsm --attack transfer:pgd", "attack transfer:pgd: expected at least one surrogate, got none"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_a_mistake_is_one_line_and_writes_nothing(arguments: str, told: str, evaluate: Rbl, folder: Path) -> None:
    before = listing(folder)
    assert told in evaluate(*arguments.split()).error
    assert listing(folder) == before
