"""The verdict's words mean the same for every attack, and none of them is `reliable` where nothing was measured."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Attack
from robustbench_lite.battery import upper_bound
from robustbench_lite.errors import UserError
from robustbench_lite.reliability import MEANING, Finding, Word, decide, joined, next_step, word_of
from robustbench_lite.row_checks import Rows, check_rows

from .nets import images, labels_of, mlp

MODEL = mlp()
X = images(80)
Y = labels_of(MODEL, X)


def evaluate(**changes: Any) -> rbl.Result:
    options = {"loss": "margin"} if changes.get("attack", "pgd") == "pgd" else {}
    arguments = {"model": MODEL, "x": X, "y": Y, "eps": 0.02, "attack_options": options, **changes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rbl.evaluate(arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments)


# -- words ----------------------------------------------------------------------------------------------


def test_every_word_is_defined_and_the_documentation_has_the_definitions() -> None:
    assert set(MEANING) == set(Word)
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text("utf-8")
    for word, meaning in MEANING.items():
        assert f"| `{word}` | {meaning} |" in page


def test_the_worst_finding_decides() -> None:
    bad, none, mild = Finding("bad: x", fatal=True), Finding("none; y", fatal=True, invalid=True), Finding("m", False)
    assert decide([mild]) == "reliable"
    assert decide([bad, mild], checked=False) == "unreliable: bad"
    assert decide([bad, none]) == "invalid: none"
    assert decide([], checked=False, bound="a single step") == "unchecked"
    assert decide([mild], bound="a single step") == "upper bound: a single step"
    assert [word_of(decide([], checked=c)) for c in (True, False)] == [Word.RELIABLE, Word.UNCHECKED]
    assert word_of("reliably") is None


def test_what_to_run_next() -> None:
    bad, other = Finding("bad", True, advice="--steps 200"), Finding("other", True)
    assert next_step([bad, other], decide([bad, other]), stronger="--attack auto") == "--steps 200; or --attack auto"
    assert next_step([], "reliable", stronger="--attack auto") == ""
    assert "without --no-checks" in next_step([], "unchecked", stronger="")


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        (["reliable", "reliable"], "reliable"),
        (["reliable", "unchecked"], "unchecked"),
        (["unreliable: a; b", "unreliable: b; c", "reliable"], "unreliable: a; b; c"),
        (["upper bound: a single step", "reliable"], "upper bound: a single step"),
        (["unchecked", "unreliable: a"], "unreliable: a"),
        (["ok", "reliable"], "ok; reliable"),
    ],
)
def test_the_worst_word_of_the_parts_holds_for_the_whole(parts: list[str], whole: str) -> None:
    assert joined(parts) == whole


# -- attacks to which few checks apply -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "options", "reason"),
    [
        ("noise", {"restarts": 3}, "no search"),
        ("fgsm", {}, "a single step"),
        ("pgd", {"steps": 1}, "a single step"),
        ("uap", {}, "learned for all images at once"),
        ("transfer:pgd", {}, "a transfer attack"),
    ],
)
def test_what_does_not_search_is_an_upper_bound(attack: str, options: dict[str, Any], reason: str) -> None:
    more: dict[str, Any] = {"surrogates": [mlp(seed=3)]} if attack.startswith("transfer") else {}
    found = evaluate(attack=attack, attack_options=options, eps=0.01, **more)
    assert found.robust_accuracy > 0
    assert found.verdict == f"upper bound: {reason}"
    assert found.next_step == "--attack auto"


def test_a_number_of_zero_bounds_itself() -> None:
    """No image survived, so that no other attack could lower it."""
    found = evaluate(attack="fgsm", eps=0.5, attack_options={})
    assert found.robust_accuracy == 0
    assert found.verdict == "reliable" and found.next_step == ""


def test_black_boxes_face_the_same_checks_as_gradients() -> None:
    """What finds less than an ascent does is no estimate of robust accuracy, whatever its access."""
    for attack, options in (("square", {"steps": 10}), ("simba", {"steps": 5}), ("boundary", {"steps": 3})):
        norm = "l2" if attack != "square" else "linf"
        found = evaluate(attack=attack, norm=norm, eps=0.05 if norm == "linf" else 0.3, attack_options=options)
        assert found.verdict.startswith("unreliable: "), attack
        assert found.next_step


def test_a_limit_of_queries_is_an_upper_bound() -> None:
    assert evaluate(attack="square", max_queries=30).verdict == "upper bound: a limit of queries"


def test_every_attack_of_this_package_searches_or_says_why_not() -> None:
    from robustbench_lite.registry import builtins

    reasons = {}
    for name, entry in builtins("attacks").items():
        cls = entry.load()
        if isinstance(cls, type) and issubclass(cls, Attack) and cls.name != "transfer":
            reasons[name] = upper_bound(cls())
    assert {name for name, reason in reasons.items() if reason} == {
        *("noise", "fgsm", "r-fgsm", "uap", "substitute"),
        *("adversarial-patch", "colour", "corruptions", "fooling", "spatial", "sticker"),
    }


# -- checks that were left out ----------------------------------------------------------------------------


def test_without_checks_it_is_unchecked_and_the_record_says_which_ran() -> None:
    off, on = evaluate(checks=False), evaluate()
    assert off.verdict == "unchecked"
    assert on.verdict == "reliable"
    records = [found.run.specification.checks for found in (off, on)]
    assert all(
        record is not None and record.before == ("output", "randomness", "batch", "gradient") for record in records
    )
    assert records[0] is not None and not records[0].asked and records[0].after == () and records[0].images == 0
    assert records[1] is not None and records[1].asked and records[1].images > 0
    assert {"repeated answers", "more steps", "unbounded attack", "black box"} <= set(records[1].after)
    assert off.run.specification.run_id() == on.run.specification.run_id()
    assert on.summary()["checks"]["images"] == records[1].images


@pytest.mark.parametrize(("copies", "told"), [(0, False), (4, False), (5, True)])
def test_copies_are_told_of(copies: int, told: bool) -> None:
    """From 5 % on: a data set has some. That the interval is too narrow makes the number no less true."""
    x = torch.cat([X, X[:copies]])
    found = evaluate(x=x, y=torch.cat([Y, Y[:copies]]))
    assert found.verdict == "reliable"
    assert any(f"{copies} of {len(x)} images are copies of others" in text for text in found.warnings) == told


@pytest.mark.parametrize("order", [(False, True), (True, False), (False, False, True, False)])
def test_checks_complete_the_record_whatever_the_order(order: tuple[bool, ...], tmp_path: Path) -> None:
    from robustbench_lite.leaderboard import build, verify
    from robustbench_lite.records import read_run

    settled = [evaluate(checks=checks, leaderboard=tmp_path).settled for checks in order]
    (file,) = (tmp_path / "runs").glob("*.parquet")
    assert read_run(file).specification.verdict == "reliable"
    assert settled.count("checked") == (order[0] is False)
    assert list(build(tmp_path)[0]["verdict"]) == ["reliable"]
    assert verify(tmp_path) == []


def test_merging_takes_over_checks_and_never_loses_them(tmp_path: Path) -> None:
    from robustbench_lite.leaderboard import merge

    for name, checks in (("with", True), ("without", False)):
        evaluate(checks=checks, leaderboard=tmp_path / name)
    for into, other in (("with", "without"), ("without", "with")):
        merged = merge(tmp_path / into, tmp_path / other)
        assert list(merged.frame["verdict"]) == ["reliable"]
        assert not merged.problems


# -- accuracy that is no better than guessing ---------------------------------------------------------------


def rows(label: Any, prediction: Any, classes: int = 10, **changes: Any) -> Rows:
    label, prediction = np.asarray(label), np.asarray(prediction)
    right = label == prediction
    columns = {
        "attacked": right,
        "success": np.zeros(len(label), bool),
        "eps": np.full(len(label), 0.1),
        "target": None,
    }
    return Rows(label, prediction, classes=classes, **{**columns, **changes})


RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, 300)
GUESSES = RANDOM.integers(0, 10, 300)


def mistaken(prediction: Any, share: float) -> Any:
    """These predictions with a share of them at random."""
    return np.where(np.random.default_rng(1).random(len(prediction)) < share, GUESSES[: len(prediction)], prediction)


SWAPPED = np.array([0, 1, 2, 3, 9, 5, 6, 7, 8, 4])
ORDER = np.array([7, 2, 5, 0, 9, 1, 8, 3, 6, 4])
RARE = (np.arange(200) % 20 == 0).astype(int)

INVALID: dict[str, tuple[Rows, str]] = {
    "labels one too high": (
        rows((LABELS + 1) % 10, mistaken(LABELS, 0.05)),
        r"below chance.*the label - 1 \(mod",
    ),
    "labels that begin at 1": (rows(LABELS + 1, mistaken(LABELS, 0.05), 11), r"below chance.*equal the label - 1$"),
    "a background class": (rows(LABELS, mistaken(LABELS + 1, 0.05), 11), r"below chance.*equal the label \+ 1$"),
    "classes in another order": (
        rows(LABELS, mistaken(ORDER[LABELS], 0.1)),
        r"another order of the classes \(0 -> 7",
    ),
    "two classes exchanged": (rows(LABELS % 2, 1 - LABELS % 2, 2), "two classes are exchanged"),
    "an untrained network": (rows(LABELS, GUESSES), "at chance.*were the weights loaded"),
    "an untrained network on 20": (rows(LABELS[:20], mistaken(LABELS, 1.0)[:20]), "chance"),
    "two classes at a half": (rows(LABELS[:100] % 2, GUESSES[:100] % 2, 2), "at chance"),
    "one answer, rare positives": (
        rows(RARE, np.zeros(200, int), 2),
        "class 0 for all 200 images, right for 95",
    ),
    "one answer, even classes": (rows(np.arange(100) % 10, np.full(100, 3)), "answers class 3 for all 100 images"),
    "one answer, 10 images": (rows([0, 0, 0, 0, 0, 1, 0, 0, 0, 0], [0] * 10, 2), "answers class 0 for all 10 images"),
    "nothing right": (rows([0, 1, 2], [1, 0, 1], 3), "chance"),
    "one wrong image": (rows([4], [5]), "one image cannot tell"),
    "one class of labels, wrong": (rows([4] * 40, GUESSES[:40]), "chance"),
    "all rejected": (rows(LABELS, np.full(300, 10)), "chance"),
}


@pytest.mark.parametrize("name", sorted(INVALID))
def test_what_is_no_better_than_guessing_is_invalid(name: str) -> None:
    given, told = INVALID[name]
    (finding,) = check_rows(given)
    assert finding.invalid and finding.advice
    assert re.search(told, finding.text), finding.text
    assert decide([finding]).startswith("invalid: ")


SOUND = {
    "a good network": rows(LABELS, mistaken(LABELS, 0.05)),
    "a poor network": rows(LABELS, mistaken(LABELS, 0.7)),
    "a good network on 4": rows([0, 1, 2, 3], [0, 1, 2, 3]),
    "a good network on 10": rows(LABELS[:10], [*LABELS[:9], 11 % 10]),
    "one image": rows([4], [4]),
    "rare positives that are found": rows(RARE, np.where(np.arange(200) < 20, 0, RARE), 2),
    "a thousand classes": rows(LABELS * 100, np.where(np.arange(300) < 270, 999, LABELS * 100), 1000),
    "one class of labels": rows([4] * 20, [4] * 18 + [5, 6]),
}


@pytest.mark.parametrize("name", sorted(SOUND))
def test_what_is_better_than_guessing_is_not_accused(name: str) -> None:
    assert not [finding for finding in check_rows(SOUND[name]) if finding.fatal]


def test_two_exchanged_classes_of_many_are_found() -> None:
    (finding,) = check_rows(rows(LABELS, mistaken(SWAPPED[LABELS], 0.05)))
    assert finding.fatal and "4 as 9, 9 as 4" in finding.text


def test_few_networks_that_guess_pass() -> None:
    generator = np.random.default_rng(5)
    for count, classes in ((12, 2), (30, 3), (100, 10)):
        passed = 0
        for _ in range(300):
            labels, guesses = generator.integers(0, classes, (2, count))
            passed += not any(finding.invalid for finding in check_rows(rows(labels, guesses, classes)))
        assert passed <= 0.09 * 300, (count, classes)


def test_labels_off_by_one_in_a_run() -> None:
    found = evaluate(y=(Y + 1) % 4)
    assert found.clean_accuracy == found.robust_accuracy == 0
    assert found.verdict.startswith("invalid: clean accuracy is below chance")
    assert any("100.0 % of the predictions equal the label - 1 (modulo 4)" in text for text in found.warnings)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.flatten(1).sum(1) * 0 + 1, x.flatten(1).sum(1) * 1e-3], 1)


def test_a_network_of_one_answer_is_no_robust_one() -> None:
    found = evaluate(model=Constant(), y=(torch.arange(80) % 10 == 0).long())
    assert found.clean_accuracy == found.robust_accuracy == pytest.approx(0.9)
    assert found.verdict.startswith("invalid: the model answers class 0 for all 80 images")


# -- nothing attacked ----------------------------------------------------------------------------------------


def test_a_target_that_every_image_has_already() -> None:
    own = Y == 2
    found = evaluate(x=X[own], y=Y[own], target=2)
    assert found.robust_accuracy == 1 and found.idle == 1
    assert re.fullmatch(r"invalid: all \d+ correctly .* the target class 2, so nothing was attacked", found.verdict)
    assert "--target" in found.next_step


def test_the_share_that_a_target_leaves_out_is_told() -> None:
    found = evaluate(target=2)
    share = float((Y == 2).double().mean())
    assert found.summary()["not_attackable"] == pytest.approx(share)
    assert f"not attackable   {100 * share:.1f} % of the images" in str(found)
    assert word_of(found.verdict) is Word.RELIABLE
    assert evaluate(target="next").idle == 0 and "not attackable" not in str(evaluate())


def test_a_target_that_most_images_have_already() -> None:
    most = torch.cat([(Y == 2).nonzero()[:, 0][:12], (Y != 2).nonzero()[:, 0][:6]])
    found = evaluate(x=X[most], y=Y[most], target=2)
    assert found.verdict.startswith("unreliable: 12 of 18 correctly classified images already have the target class 2")


@pytest.mark.parametrize("eps", [0.0, 1e-9, torch.zeros(80)])
@pytest.mark.parametrize("attack", ["pgd", "noise"])
def test_an_eps_that_changes_nothing_is_invalid(eps: Any, attack: str) -> None:
    found = evaluate(eps=eps, attack=attack, checks=False)
    assert found.robust_accuracy == found.clean_accuracy
    assert found.verdict.startswith("invalid: eps ")
    assert found.next_step


@pytest.mark.parametrize(("attack", "least"), [("pgd", 3), ("square", 3), ("noise", 2), ("auto", 3)])
def test_a_limit_under_which_nothing_is_asked_is_refused(attack: str, least: int) -> None:
    with pytest.raises(UserError, match=f"max_queries must be >= {least}, got {least - 1}: the clean image"):
        evaluate(attack=attack, max_queries=least - 1)
    assert evaluate(attack=attack, max_queries=least, checks=False).run.table["forwards"].to_numpy().max() <= least


def test_a_limit_counts_the_draws_of_a_random_model() -> None:
    from robustbench_lite.defenses.random_noise import RandomNoise

    with pytest.raises(UserError, match="max_queries must be >= 40, got 39"):
        evaluate(defenses=[RandomNoise(0.05)], max_queries=39)


# -- after a verdict ---------------------------------------------------------------------------------------


def _rounded(x: Tensor) -> Tensor:
    return (x * 7).round() / 7


def _noisy(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


class Behind(nn.Module):
    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.before = mlp(), before

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.before(x))
        return logits


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attack_options": {"steps": 2, "step_size": 0.001}, "eps": 0.05}, "--steps 10"),
        ({"model": Behind(_rounded), "eps": 0.05}, "state differentiable = False with a surrogate"),
        ({"model": Behind(_noisy)}, "randomized = True"),
        ({"model": Behind(_centred)}, "stored statistics"),
        ({"model": nn.Sequential(mlp(scale=3000), nn.Softmax(1)), "eps": 1e-3}, "before the softmax"),
    ],
    ids=["few steps", "rounding", "random", "batch", "softmax"],
)
def test_unreliable_comes_with_the_next_step(changes: dict[str, Any], told: str) -> None:
    found = evaluate(**{"y": labels_of(changes.get("model", MODEL).eval(), X), **changes})
    assert found.verdict.startswith("unreliable: ")
    assert told in found.next_step and "\n" not in found.next_step
    assert f"next step        {found.next_step}" in str(found)
    assert found.summary()["next_step"] == found.next_step
