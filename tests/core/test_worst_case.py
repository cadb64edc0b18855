"""Several attacks in one run: an image is misclassified exactly where one of them misclassifies it alone."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import robustbench_lite as rbl
from robustbench_lite import portfolio
from robustbench_lite.attack import Attack
from robustbench_lite.attacks.ddn import DDN
from robustbench_lite.attacks.deepfool import DeepFool
from robustbench_lite.attacks.fgsm import FGSM
from robustbench_lite.attacks.fooling import Fooling
from robustbench_lite.attacks.noise import Noise
from robustbench_lite.attacks.one_pixel import OnePixel
from robustbench_lite.attacks.pgd import PGD
from robustbench_lite.attacks.spatial import Spatial
from robustbench_lite.attacks.square import Square
from robustbench_lite.engine import Entry
from robustbench_lite.errors import UserError
from robustbench_lite.leaderboard import build, verify
from robustbench_lite.network import Network, frozen
from robustbench_lite.perturbation import make_attack
from robustbench_lite.plan import make_threat
from robustbench_lite.portfolio import Chain, Part, Portfolio, engine_for
from robustbench_lite.records.check import check_run
from robustbench_lite.records.run import read_run, seal
from robustbench_lite.result import Result, finished_columns
from robustbench_lite.threat import Threat
from robustbench_lite.worst_case import WorstCase

from .nets import SHAPE, Binary, Columns, Rows, TensorSource, differing, images, join, labels_of, mlp

THREAT = Threat("linf", 0.05)
MODEL = mlp(scale=4.0)
X = images(40)
Y = torch.where(torch.arange(40) % 7 == 0, (labels_of(MODEL, X) + 1) % 4, labels_of(MODEL, X))


@dataclass(frozen=True)
class Prunes(Portfolio):
    """A portfolio that gives most survivors up before its last part, and begins that where the first ended."""

    name: ClassVar[str] = "prunes"
    summary: ClassVar[str] = "planted"
    source: ClassVar[str] = "none"
    targeted: ClassVar[bool] = False

    def parts(self, threat: Threat) -> tuple[Attack | Part, ...]:
        polish = PGD(steps=4, random_start=False)
        return PGD(steps=1), Part(PGD(steps=1), hope=0.4), Part(polish, hope=0.2, warm="margin")


# Those that succeed seldom come first, so that others have something left.
ATTACKS = (Noise(), Square(steps=20), PGD(steps=1), Prunes(), DeepFool(), PGD(steps=6), PGD(steps=6, loss="dlr"))


def make(attack: Attack, *, threat: Threat = THREAT, **settings: Any) -> Any:
    source = TensorSource(X, Y, threat.each(len(X)))
    return engine_for(attack.resolve(threat), Network(MODEL, n_classes=4), source, threat=threat, **settings)


def finish(engine: Any) -> Columns:
    with frozen(MODEL), torch.no_grad():
        return join([finished_columns(entry, x, keep_images=True) for entry, x in engine.run() if len(entry.y)])


def evaluate(attack: Any, **settings: Any) -> Result:
    given: dict[str, Any] = {"eps": 0.05, "checks": False, **settings}
    return rbl.evaluate(MODEL, X, Y, attack=attack, **given)


def test_it_misclassifies_what_one_of_them_misclassifies_alone() -> None:
    found = finish(make(WorstCase(ATTACKS)))
    alone = [finish(make(attack))["success"] for attack in ATTACKS]
    union = torch.stack(alone).any(0)
    assert torch.equal(found["success"], union)
    assert 0 < int(alone[1].sum()) < int(union.sum()) < int(found["attacked"].sum())
    # In its turn: by the first that misclassifies it alone, and what nothing misclassifies was given to the last.
    first = torch.stack([*alone, torch.ones_like(union)]).int().argmax(0).clamp_max(len(ATTACKS) - 1)
    assert torch.equal(found["turn"][found["attacked"]], first[found["attacked"]])


def test_a_portfolio_among_them_prunes_for_itself_alone() -> None:
    chain = make(WorstCase((Prunes(), PGD(steps=6))))
    found = finish(chain)
    pruned = found["turn_calls"][:, 0].sum(1)
    survived = found["turn"] == 1
    assert len(set(pruned[survived].tolist())) > 1, "nobody was pruned"
    assert (found["turn_calls"][survived, 1, 0] > 0).all()
    assert [link.turn for link in chain.parts] == [0, 0, 0, 1]


@pytest.mark.parametrize("size", [3, 7, 256])
def test_the_batch_does_not_matter(size: int) -> None:
    whole, part = finish(make(WorstCase(ATTACKS))), finish(make(WorstCase(ATTACKS), batch_size=size))
    for name in ("success", "forwards", "backwards", "turn", "turn_calls"):
        assert torch.equal(whole[name], part[name]), name


def test_cohorts_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finish(make(WorstCase(ATTACKS), batch_size=8))
    monkeypatch.setattr(portfolio, "_COHORT", 16)
    part = finish(make(WorstCase(ATTACKS), batch_size=8))
    assert torch.equal(whole["success"], part["success"]) and torch.equal(whole["turn_calls"], part["turn_calls"])


@pytest.mark.parametrize("moment", [1, 4, 11, 19, 40, 70])
def test_a_stored_run_goes_on_to_the_last_bit(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portfolio, "_COHORT", 32)
    whole = finish(make(WorstCase(ATTACKS), batch_size=16))
    chain, before = make(WorstCase(ATTACKS), batch_size=16), []
    with frozen(MODEL), torch.no_grad():
        for _, (entry, x) in zip(range(moment), chain.run(), strict=False):
            if len(entry.y):
                before.append(finished_columns(entry, x, keep_images=True))
        stored = chain.snapshot()
    other = make(WorstCase(ATTACKS), batch_size=16)
    other.restore(stored)
    assert differing(whole, join([*before, finish(other)])) == []


def test_passes_are_counted_for_each() -> None:
    chain = make(WorstCase(ATTACKS))
    rows = Rows().watch(chain.network.model)
    found = finish(chain)
    assert rows.count == int(found["forwards"].sum()) == len(X) + int(found["turn_calls"][..., 0].sum())
    assert int(found["backwards"].sum()) == int(found["turn_calls"][..., 1].sum()) > 0
    lone = finish(make(ATTACKS[0]))
    assert torch.equal(found["turn_calls"][:, 0, 0], lone["forwards"] - 1)


def test_a_limit_of_queries_binds_the_whole() -> None:
    found = finish(make(WorstCase(ATTACKS), max_queries=9))
    assert int(found["forwards"].max()) <= 9
    assert (found["turn_calls"].sum(2) >= 0).all()


def test_one_portfolio_counts_nothing_apart() -> None:
    chain = make(Prunes())
    assert isinstance(chain, Chain) and chain.turns == 0
    entries = [entry for entry, _ in chain.run()]
    assert all(isinstance(entry, Entry) and entry.turn is None for entry in entries)


# -- a run ------------------------------------------------------------------------------------------


def test_the_rows_of_each_attack_add_up() -> None:
    r = evaluate(["noise", "pgd", "square"], attack_options={"pgd.steps": 5, "square.steps": 20})
    each = r.by_attack
    assert each.attack.tolist() == ["noise", "pgd", "square"] and each.options.tolist() == ["", "steps=5", "steps=20"]
    attacked = int(r.column("attacked").sum())
    assert each.images.tolist() == [attacked - done for done in (0, *each.successes.cumsum().tolist()[:-1])]
    assert int(each.successes.sum()) == int(r.success.sum()) > 0
    assert each.surviving.iloc[-1] == r.robust_accuracy and each.surviving.is_monotonic_decreasing
    assert (each.images * each.forwards).sum() == pytest.approx(r.forwards - len(X))
    assert (each.images * each.backwards).sum() == pytest.approx(r.backwards)
    assert r.summary()["by_attack"][1]["options"] == "steps=5"
    assert "worst case of 3 attacks" in str(r) and "pgd steps=5" in str(r)
    assert check_run(r.run) == []


@pytest.mark.parametrize("change", [{"successes": 0}, {"images": 999}, {"forwards": 1}, {"backwards": 1}])
def test_a_record_that_does_not_add_up_is_found_out(change: dict[str, Any]) -> None:
    run = evaluate(["fgsm", "noise"]).run
    first, second = run.specification.by_attack
    forged = replace(run.specification, by_attack=(replace(first, **change), second))
    assert any("by_attack" in fault for fault in check_run(seal(forged, run.table)))


def test_it_is_read_back_from_its_file_and_stands_on_the_leaderboard(tmp_path: Path) -> None:
    r = evaluate(["fgsm", "pgd"], attack_options={"steps": "5"}, leaderboard=tmp_path)
    assert r.file is not None
    run = read_run(r.file)
    said = run.specification
    assert said == r.run.specification and Result(run).by_attack.equals(r.by_attack)
    assert said.attack.options == {"pgd.steps": 5}
    assert [part["name"] for part in said.attack.resolved["parts"]] == ["fgsm", "pgd"]
    assert said.attack.resolved["parts"][1]["step_size"] is not None, "as resolved"
    row = build(tmp_path)[0].iloc[0]
    assert (row.attack, row.attack_options, row.robust_accuracy) == ("fgsm + pgd", "pgd.steps=5", r.robust_accuracy)
    assert verify(tmp_path) == []
    assert evaluate(["fgsm", "pgd"], attack_options={"pgd.steps": 5}, leaderboard=tmp_path).settled == "reproduced"


def test_what_decides_is_in_the_name_of_the_run() -> None:
    def run_id(attack: Any, **options: Any) -> str:
        return evaluate(attack, attack_options=options).run.specification.run_id()

    whole = run_id(["fgsm", "pgd"], steps=5)
    assert whole == run_id(["fgsm", PGD(steps=5)]) == run_id([FGSM(), "pgd"], **{"pgd.steps": 5})
    assert len({whole, run_id(["pgd", "fgsm"], steps=5), run_id(["fgsm", "pgd"], steps=6), run_id("fgsm")}) == 4
    assert run_id(["pgd"], steps=5) == run_id("pgd", steps=5) == run_id(("pgd",), steps=5)


def test_of_one_attack_the_list_changes_nothing() -> None:
    one, other = evaluate(["fgsm"]), evaluate("fgsm")
    assert one.run.table.equals(other.run.table) and one.run.specification.by_attack == ()
    assert not len(one.by_attack) and "by_attack" not in one.summary() and "worst case" not in str(one)


def test_shards_add_up_to_the_whole(tmp_path: Path) -> None:
    from robustbench_lite.given import given_data, given_model
    from robustbench_lite.plan import Plan
    from robustbench_lite.plan_run import run_plan

    attack = make_attack(["noise", "pgd"], {"steps": 5}, THREAT)
    given: dict[str, Any] = {"data": given_data(X, Y, 4, None), "model": given_model(MODEL), "checks": False}
    plan = Plan(**given, index=torch.arange(len(X)), attack=attack, threat=THREAT)
    whole = run_plan(plan).run.specification.by_attack
    for shard in ((1, 2), (2, 2)):
        run_plan(dataclasses.replace(plan, shard=shard), leaderboard=tmp_path)
    build(tmp_path)
    (file,) = (tmp_path / "runs").glob("*.parquet")
    assert read_run(file).specification.by_attack == whole
    assert verify(tmp_path) == []


def test_the_same_attack_with_other_options_is_another() -> None:
    r = evaluate(["pgd", "pgd"], attack_options={"pgd-1.steps": 3, "pgd-2.steps": 5, "pgd-2.loss": "dlr"})
    assert r.by_attack.attack.tolist() == ["pgd-1", "pgd-2"]
    assert r.run.specification.attack_options == "pgd-1.steps=3 pgd-2.steps=5 pgd-2.loss=dlr"


def test_an_eps_for_each_image() -> None:
    eps = torch.linspace(0, 0.1, len(X))
    r = evaluate(["pgd", "fgsm"], eps=eps)
    both = [evaluate(attack, eps=eps).success for attack in ("pgd", "fgsm")]
    assert torch.equal(r.success, both[0] | both[1])
    assert check_run(r.run) == []


def test_targets_are_those_of_all() -> None:
    r = evaluate(["fgsm", "pgd"], target="next", eps=0.2)
    both = [evaluate(attack, target="next", eps=0.2).success for attack in ("fgsm", "pgd")]
    assert torch.equal(r.success, both[0] | both[1]) and r.success.any()


def test_a_transfer_is_one_of_them() -> None:
    surrogate = mlp(scale=4.0, seed=1)
    given: dict[str, Any] = {"surrogates": [surrogate], "eps": 0.2}
    r = evaluate(["noise", "transfer:pgd"], attack_options={"transfer:pgd.steps": 5}, **given)
    alone = evaluate("transfer:pgd", attack_options={"steps": 5}, **given)
    assert torch.equal(r.success, alone.success | evaluate("noise", eps=0.2).success) and alone.success.any()
    part = r.run.specification.attack.resolved["parts"][1]
    assert part["surrogates"] == alone.run.specification.attack.resolved["surrogates"]
    assert r.run.specification.attack.options == {"transfer:pgd.steps": 5, "transfer:pgd.surrogate": "Sequential"}


def test_what_one_of_them_learns_is_learned_first() -> None:
    fit = X[:16], Y[:16]
    r = evaluate(["fgsm", "uap"], fit_data=fit, eps=0.2)
    alone = evaluate("uap", fit_data=fit, eps=0.2)
    assert torch.equal(r.success, alone.success | evaluate("fgsm", eps=0.2).success) and r.fit_forwards > 0
    assert [name.split(".")[0] for name in r.learned] == ["1"] * len(alone.learned)


def test_attacks_with_limits_of_their_own_go_together() -> None:
    r = rbl.evaluate(MODEL, X[:8], Y[:8], attack=["spatial", "sticker"], checks=False)
    both = [rbl.evaluate(MODEL, X[:8], Y[:8], attack=attack, checks=False).success for attack in ("spatial", "sticker")]
    assert torch.equal(r.success, both[0] | both[1])
    assert r.summary()["norm"] == "own limits"


# -- what is checked, and what cannot be -----------------------------------------------------------


@pytest.mark.parametrize(
    ("attacks", "checked"),
    [
        ((Noise(), PGD()), PGD()),
        ((FGSM(), Square()), Square()),
        ((Square(), PGD()), PGD()),
        ((Prunes(), PGD()), PGD()),
        ((Noise(), Prunes(), DeepFool()), Prunes()),
        ((Noise(), FGSM()), FGSM()),
    ],
)
def test_survivors_are_checked_as_those_of_the_attack_that_allows_most(
    attacks: tuple[Attack, ...], checked: Attack
) -> None:
    assert WorstCase(attacks).checked_as == checked


def test_the_checks_that_one_of_them_allows_are_made() -> None:
    class Rounds(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = MODEL((x * 8).round() / 8)
            return out

    with warnings.catch_warnings(action="ignore"):
        r = rbl.evaluate(Rounds().eval(), X, labels_of(MODEL, X), attack=["noise", "pgd"], eps=0.1)
    assert r.verdict.startswith("unreliable") and "BPDA" in r.verdict


def several(specs: list[Any], options: dict[str, Any] | None = None, norm: str | None = None) -> Attack:
    return make_attack(specs, options, make_threat(norm, None, specs))


@pytest.mark.parametrize(
    ("specs", "options", "told"),
    [
        ([], None, "attack: expected at least one, got an empty list"),
        (["pgd", "pgd"], None, "attack: pgd is given twice with the same options; leave one out"),
        (["pgd", PGD()], None, "attack: pgd is given twice with the same options"),
        (["pgd", "pgd"], {"pgd-2.steps": 40}, "pgd is given twice"),  # which is the default
        (["pgd", "spatial"], None, "got spatial with limits of its own beside pgd, bounded by a norm"),
        (["spatial", "fooling"], None, "attack: fooling does not end at a success; evaluate it alone"),
        (["one-pixel", "ddn"], None, "a norm in common, got one-pixel: l0; ddn: l2; evaluate them apart"),
        (["pgd", "pgdd"], None, "attack: unknown name 'pgdd'"),
        (["pgd", 3], None, "attack: expected a name, FILE.py:NAME or an instance of Attack, got 3"),
        (["pgd", PGD], None, "got the class PGD"),
        (["pgd", ["fgsm", "noise"]], None, "attack: expected a name, FILE.py:NAME or an instance of Attack"),
        (["pgd", "square"], {"steps": 3}, "attack option steps: pgd and square both have it; say which, as"),
        (["pgd", "square"], {"sqare.steps": 3}, "attack option: no attack 'sqare'; did you mean square?"),
        (["pgd", "square"], {"square.steps": 0}, "attack option square.steps must be >= 1, got 0"),
        (["pgd", "square"], {"square.step": 1}, "square has no option 'step'; did you mean steps?"),
        (["pgd", "square"], {"stepps": 1}, "attack option: unknown option 'stepps'; did you mean steps or"),
        (["pgd", "fgsm"], {"steps": 3, "pgd.steps": 4}, "attack option pgd.steps: it is given twice"),
        (["fgsm", PGD()], {"pgd.steps": 3}, "attack_options: give them to the attack itself"),
        (["pgd", "pgd"], {"pgd.steps": 3}, "attack option: no attack 'pgd'; did you mean pgd-"),
        (["pgd", "transfer:pgd"], None, "attack transfer:pgd: expected at least one surrogate, got none"),
    ],
)
def test_a_mistake_is_one_line(specs: list[Any], options: dict[str, Any] | None, told: str) -> None:
    with pytest.raises(UserError) as caught:
        several(specs, options)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_norm_that_one_of_them_lacks() -> None:
    assert make_threat(None, None, ["pgd", "ddn"]).norm == "l2", "the first that both have"
    with pytest.raises(UserError, match="norm of attack ddn: unknown name 'linf'"):
        several(["pgd", "ddn"], norm="linf")
    with pytest.raises(UserError, match=r"a norm in common, got one-pixel: l0; ddn: l2"):
        WorstCase((OnePixel(), DDN()))


def test_instances_are_held_to_the_same() -> None:
    for wrong in ((PGD(), Spatial()), (Spatial(), Fooling()), (Noise(), Noise()), (), (WorstCase((PGD(), FGSM())),)):
        with pytest.raises(UserError, match=r"^attack: "):
            WorstCase(wrong)


def test_one_that_cannot_aim_is_named() -> None:
    with pytest.raises(UserError, match=r"target: attack deepfool, fab-t cannot aim at a class; leave it out"):
        evaluate(["pgd", "deepfool", "fab-t"], target="next")
    with pytest.raises(UserError, match=r"target: attack uap learns once for all images, so it aims at one class"):
        evaluate(["pgd", "uap"], target="next")


def test_several_names_in_one_text_say_how() -> None:
    for text in ("pgd,square", "pgd + square", "pgd;fgsm", "pgd fgsm"):
        with pytest.raises(
            UserError, match=r"attack: expected one name, got '.*'; give several one by one: --attack pgd"
        ):
            evaluate(text)


def test_a_surrogate_is_for_a_transfer() -> None:
    with pytest.raises(UserError, match=r"surrogate: none of the attacks is a transfer"):
        evaluate(["pgd", "fgsm"], surrogates=[MODEL])


@pytest.mark.parametrize(
    ("attacks", "word", "next_step"),
    [
        (["noise", "fgsm"], "upper bound", "--attack auto"),
        (["fgsm", "pgd"], "reliable", ""),
        (["noise", "square"], "reliable", ""),
    ],
)
def test_the_verdict_is_that_of_the_strongest(attacks: list[str], word: str, next_step: str) -> None:
    model = Binary(torch.ones(SHAPE), -18.0).eval()
    x = torch.cat([images(20) * 0.1, 1 - images(20, seed=1) * 0.1])
    r = rbl.evaluate(model, x, labels_of(model, x), attack=attacks, eps=0.05)
    assert r.robust_accuracy == 1
    assert r.verdict.split(":")[0] == word
    assert r.run.specification.next_step == next_step
