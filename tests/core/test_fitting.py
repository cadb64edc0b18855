"""What an attack learns: once and first, counted apart, kept with the run, the same at any batch size."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.attacks.pgd import PGD
from robustbench_lite.data import from_arrays
from robustbench_lite.errors import AccessError, PluginError, UserError
from robustbench_lite.fitting import FIT_SAMPLES, FitData, fit_attack
from robustbench_lite.losses import margin
from robustbench_lite.models import LoadedModel
from robustbench_lite.network import Network
from robustbench_lite.perturbation import perturb
from robustbench_lite.plan import Plan, with_fit_data
from robustbench_lite.plan_run import run_plan
from robustbench_lite.portfolio import Portfolio
from robustbench_lite.query import Query
from robustbench_lite.running import Interrupted
from robustbench_lite.surrogate import Surrogate, Transfer
from robustbench_lite.threat import Threat

from .nets import Asks, Rows, images, labels_of, mlp


def mean_slope(query: Query, batch: Batch) -> dict[str, Tensor]:
    """The mean gradient at noisy images, each asked twice: 2 passes an image."""
    rows = torch.arange(2 * len(batch.y)) % len(batch.y)
    noise = torch.cat([batch.stream.uniform(batch.ball.x.shape[1:], draw=d) for d in (0, 1)])
    slope = query.gradient(batch.ball.x[rows] * 0.9 + noise * 0.1, margin, rows=rows).gradient
    return {"delta": slope.double().mean(0).float().sign()}


def follows(query: Query, batch: Batch) -> State:
    ball = batch.ball
    return State(ball.project(ball.x + batch.learned["delta"] * ball.eps.reshape(-1, 1, 1, 1)))


def slope_attack(fit: Any = mean_slope, **attributes: Any) -> Attack:
    """Everybody is moved along one learned direction; one step that asks nothing more."""
    own = {"fit": lambda self, query, batch: fit(query, batch)}
    return Asks.make(lambda q, b, s: s, follows, **own, **attributes)


def plan(model: nn.Module, x: Tensor, **changes: Any) -> Plan:
    whole = Plan(
        model=LoadedModel(
            module=model, name="mlp", sha256="a" * 64, parameters=1, preprocessing={}, weights="given", recipe=None
        ),
        data=from_arrays(x, labels_of(model, x), classes=4),
        index=torch.arange(len(x)),
        attack=slope_attack(),
        threat=Threat("linf", 0.2),
        batch_size=8,
        checks=False,
        keep_images=True,
    )
    return dataclasses.replace(whole, **changes)


def learned(attack: Attack, x: Tensor, model: nn.Module | None = None, **options: Any) -> dict[str, Tensor]:
    """What it learns by itself, outside a run."""
    model = model or mlp()
    with torch.no_grad():
        fit = fit_attack(attack, Network(model), FitData(x, labels_of(model, x)), threat=Threat("linf", 0.2), **options)
    return dict(fit.learned)


def test_it_learns_once_before_all_else_and_what_that_cost_is_told_apart() -> None:
    model, x, other = mlp(), images(40), images(30, seed=1)
    moments: list[int] = []
    rows = Rows().watch(model)

    def fit(query: Query, batch: Batch) -> dict[str, Tensor]:
        moments.append(rows.count)
        assert len(batch.y) == 30
        assert torch.equal(batch.ball.x, other)
        assert not batch.step.any()
        return mean_slope(query, batch)

    given = (other, labels_of(model, other))

    result = rbl.evaluate(
        model, x, labels_of(model, x), attack=slope_attack(fit), eps=0.2, fit_data=given, checks=False
    )
    assert len(moments) == 1
    calls = result.run.specification.calls
    assert (result.fit_forwards, result.fit_backwards) == (60, 60)
    # The clean pass and one proof of each: nothing of the fit is among them.
    assert result.forwards == calls["forwards"] == int(result.column("forwards").sum()) == 2 * 40
    assert result.backwards == 0
    assert result.summary()["fit_forwards"] == 60
    assert result.success.any()
    assert torch.equal(result.learned["delta"], learned(slope_attack(), other)["delta"])
    assert result.run.specification.attack.resolved["fit"]["images"] == 30
    assert result.run.specification.attack.resolved["fit"]["origin"] == "given"


def test_the_network_sees_as_many_images_as_are_counted() -> None:
    model, x = mlp(), images(20)
    y = labels_of(model, x)
    rows = Rows().watch(model)
    with torch.no_grad():
        fit = fit_attack(slope_attack(), Network(model), FitData(x, y), threat=Threat("linf", 0.2))
    assert (fit.forwards, fit.backwards, rows.count) == (40, 40, 40)
    assert fit.seconds > 0


def test_an_attack_that_learns_nothing_is_told_nothing() -> None:
    model, x = mlp(), images(10)
    y = labels_of(model, x)
    result = rbl.evaluate(model, x, y, attack=PGD(steps=2), eps=0.1, fit_data=(x, y), checks=False)
    assert result.learned == {}
    assert "fit_forwards" not in result.run.specification.calls
    assert "fit_forwards" not in result.summary()
    assert "fit" not in result.run.specification.attack.resolved


@pytest.mark.parametrize("size", [1, 37, 200])
def test_any_batch_size_and_precision_learn_the_same(size: int) -> None:
    model, x = mlp(), images(80)
    base = run_plan(plan(model, x, batch_size=80))
    for changes in ({"batch_size": size}, {"batch_size": size, "precision": "bf16"}):
        assert torch.equal(run_plan(plan(model, x, **changes)).learned["delta"], base.learned["delta"])
    assert torch.equal(run_plan(plan(model, x, batch_size=size)).success, base.success)


def test_a_seed_decides_and_shards_learn_alike() -> None:
    model, x = mlp(), images(60)

    def noisy(query: Query, batch: Batch) -> dict[str, Tensor]:
        return {"delta": batch.stream.uniform(batch.ball.x.shape[1:])[0]}

    runs = [
        run_plan(plan(model, x, attack=slope_attack(noisy), **changes)).learned["delta"]
        for changes in ({}, {}, {"shard": (1, 2)}, {"shard": (2, 2)}, {"seed": 1})
    ]
    assert all(torch.equal(runs[0], run) for run in runs[1:4])
    assert not torch.equal(runs[0], runs[4])


def test_without_images_of_its_own_it_learns_from_some_of_the_evaluated_ones() -> None:
    model, x = mlp(), images(FIT_SAMPLES + 90)
    fit = with_fit_data(plan(model, x)).fit
    assert fit is not None
    assert len(fit.x) == FIT_SAMPLES
    assert torch.equal(fit.x[[0, -1]], x[[0, -1]])
    assert fit.record["origin"] == "the evaluated images"
    assert with_fit_data(plan(model, x, attack=PGD())).fit is None


def test_other_images_to_learn_from_are_another_run() -> None:
    model, x = mlp(), images(20)
    ids = {
        run_plan(plan(model, x, fit=fit)).run.specification.run_id()
        for fit in (None, FitData(x[:5], labels_of(model, x[:5])), FitData(x[5:], labels_of(model, x[5:])))
    }
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("fit_data", "message"),
    [
        ((images(3, (1, 5, 5)), torch.zeros(3, dtype=torch.int64)), r"fit_data: expected images of shape \(1, 6, 6\)"),
        ((images(3), torch.zeros(2, dtype=torch.int64)), r"fit_data: y must be \(3,\)"),
        ((images(0), torch.zeros(0, dtype=torch.int64)), "fit_data: x must hold at least one image"),
        ((images(3), torch.full((3,), 9)), r"y: expected labels in 0..3, got 9"),
        ((images(3) + 1, torch.zeros(3, dtype=torch.int64)), r"fit_data: x must be in \[0, 1\]"),
        ((images(3).numpy(), [0, 1, 2]), r"fit_data: expected two tensors \(x, y\), got ndarray and list"),
    ],
)
def test_images_that_nothing_can_be_learned_from(fit_data: Any, message: str) -> None:
    model, x = mlp(), images(4)
    with pytest.raises(UserError, match=message):
        rbl.evaluate(model, x, labels_of(model, x), attack=slope_attack(), eps=0.2, fit_data=fit_data)


def stop_after(count: int) -> Any:
    calls = iter(range(10**6))
    return lambda: next(calls) >= count


def test_what_was_learned_is_kept_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_lite.checkpoint.EVERY", 0.0)
    model, x = mlp(), images(60)
    undisturbed = run_plan(plan(model, x))
    fits: list[int] = []

    def fit(query: Query, batch: Batch) -> dict[str, Tensor]:
        fits.append(1)
        return mean_slope(query, batch)

    whole = plan(model, x, attack=slope_attack(fit))
    notes: list[str] = []
    with pytest.raises(Interrupted, match="they are kept"):  # one question while it learns, then two steps
        run_plan(whole, leaderboard=tmp_path, stop=stop_after(3), note=notes.append)
    assert any("planted learns from 60 images (the evaluated images), once" in note for note in notes)
    result = run_plan(whole, leaderboard=tmp_path, note=notes.append)
    assert len(fits) == 1
    assert any("what planted learned was kept" in note for note in notes)
    assert (result.fit_forwards, result.fit_backwards) == (120, 120)
    assert torch.equal(result.learned["delta"], undisturbed.learned["delta"])
    assert result.run.table.equals(undisturbed.run.table)
    assert [file.suffix for file in (tmp_path / "runs").iterdir()] == [".parquet"]


@pytest.mark.parametrize("again", ["killed", "corrupt", "anew"])
def test_killed_after_learning_it_learns_no_second_time_unless_it_must(
    again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = mlp(), images(20)
    fits: list[int] = []

    def fit(query: Query, batch: Batch) -> dict[str, Tensor]:
        fits.append(1)
        return mean_slope(query, batch)

    class Killed(BaseException):
        pass

    def die(*_: Any) -> Any:
        raise Killed

    whole = plan(model, x, attack=slope_attack(fit))
    with monkeypatch.context() as patch:
        patch.setattr("robustbench_lite.plan_run.Running.finish", die)
        with pytest.raises(Killed):
            run_plan(whole, leaderboard=tmp_path)
    file = next((tmp_path / "runs").glob("*.partial")) / "fit.safetensors"
    if again == "corrupt":
        file.write_bytes(file.read_bytes()[:50])
    result = run_plan(whole, leaderboard=tmp_path, resume=again != "anew")
    assert len(fits) == (1 if again == "killed" else 2)
    assert result.fit_forwards == 40


def test_it_can_be_stopped_while_it_learns(tmp_path: Path) -> None:
    model, x = mlp(), images(20)
    asked: list[int] = []

    def fit(query: Query, batch: Batch) -> dict[str, Tensor]:
        for _ in range(100):
            query.labels(batch.ball.x)
            asked.append(1)
        return {}

    with pytest.raises(Interrupted, match="while the attack was learning; nothing is kept"):
        run_plan(plan(model, x, attack=slope_attack(fit)), leaderboard=tmp_path, stop=stop_after(5))
    assert len(asked) == 5
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_transfer_can_be_stopped_while_it_learns_from_its_surrogate(tmp_path: Path) -> None:
    model, x = mlp(), images(20)
    asked: list[int] = []

    def fit(query: Query, batch: Batch) -> dict[str, Tensor]:
        for _ in range(100):
            query.labels(batch.ball.x)
            asked.append(1)
        return {}

    attack = Transfer(slope_attack(fit), (Surrogate(mlp(), "other", "", ""),))
    with pytest.raises(Interrupted, match="while the attack was learning; nothing is kept"):
        run_plan(plan(model, x, attack=attack), leaderboard=tmp_path, stop=stop_after(5))
    assert len(asked) == 5


def test_perturb_learns_from_its_own_images() -> None:
    model, x = mlp(), images(30)
    y = labels_of(model, x)
    seen = perturb(model, x, y, attack=slope_attack(), eps=0.2)
    assert Threat("linf", 0.2).around(x).contains(seen).all()
    assert (model(seen).argmax(1) != y).double().mean() > 0.2
    assert torch.equal(seen, perturb(model, x, y, attack=slope_attack(), eps=0.2))
    assert torch.allclose(seen - x, (learned(slope_attack(), x)["delta"] * 0.2 + x).clamp(0, 1) - x, atol=1e-6)


def test_a_class_to_aim_at_is_told_and_only_one() -> None:
    model, x = mlp(), images(12)
    y = labels_of(model, x)
    told: list[Tensor | None] = []

    def fit(query: Query, batch: Batch) -> dict[str, Tensor]:
        told.append(batch.targets)
        return mean_slope(query, batch)

    attack = slope_attack(fit, one_target=True)
    rbl.evaluate(model, x, y, attack=attack, eps=0.2, target=2)
    assert told[0] is not None
    assert told[0].tolist() == [2] * 12
    for target in ("next", "random", "all", "least-likely"):
        with pytest.raises(UserError, match="learns once for all images, so it aims at one class"):
            rbl.evaluate(model, x, y, attack=attack, eps=0.2, target=target)
    with pytest.raises(UserError, match="so it aims at one class"):
        perturb(model, x, y, attack=attack, eps=0.2, targets=torch.arange(12) % 4)
    perturb(model, x, y, attack=attack, eps=0.2, targets=torch.full_like(y, 1))
    assert told[-1] is not None
    assert told[-1].tolist() == [1] * 12
    # What does not hang on the class may be learned once for all of them.
    rbl.evaluate(model, x, y, attack=slope_attack(fit), eps=0.2, target="next")
    assert told[-1] is None


def test_a_fit_that_returns_no_tensors_asks_too_much_or_breaks() -> None:
    x = images(4)
    with pytest.raises(UserError, match="fit must return a dictionary of tensors by name, got None"):
        learned(slope_attack(lambda q, b: None), x)
    with pytest.raises(UserError, match=r"fit must return a dictionary of tensors by name, got \{'a': 1\}"):
        learned(slope_attack(lambda q, b: {"a": 1}), x)
    with pytest.raises(AccessError, match="declares label access and asked for gradient"):
        learned(slope_attack(access="label"), x)
    with pytest.raises(PluginError, match="attack planted: fit") as raised:
        learned(slope_attack(lambda q, b: 1 // 0), x)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_what_was_learned_is_not_to_be_written_to() -> None:
    model, x = mlp(), images(4)

    def harm(query: Query, batch: Batch, state: State) -> State:
        batch.learned["delta"].zero_()
        return state

    attack = Asks.make(harm, follows, fit=lambda self, query, batch: mean_slope(query, batch))
    with pytest.raises(UserError, match="changed its batch in place"):
        rbl.evaluate(model, x, labels_of(model, x), attack=attack, eps=0.2)


def test_fit_leaves_the_network_and_the_random_state_alone() -> None:
    model, x = mlp(), images(10)
    y = labels_of(model, x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()

    def fit(query: Query, batch: Batch) -> dict[str, Tensor]:
        torch.rand(3)
        return mean_slope(query, batch)

    rbl.evaluate(model, x, y, attack=slope_attack(fit), eps=0.2, checks=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_parts_of_a_portfolio_learn_each_for_itself() -> None:
    model, x = mlp(), images(40)
    y = labels_of(model, x)

    def backwards(query: Query, batch: Batch) -> dict[str, Tensor]:
        return {"delta": -mean_slope(query, batch)["delta"]}

    class Both(Portfolio):
        name = "both"
        summary = ""
        source = ""

        def parts(self, threat: Threat) -> Any:
            return slope_attack(backwards), PGD(steps=1), slope_attack()

    found = rbl.evaluate(model, x, y, attack=Both(), eps=0.2, checks=False)
    assert sorted(found.learned) == ["0.delta", "2.delta"]
    assert torch.equal(found.learned["0.delta"], -found.learned["2.delta"])
    assert found.fit_forwards == 160
    alone = rbl.evaluate(model, x, y, attack=slope_attack(), eps=0.2, checks=False)
    assert found.success.sum() >= alone.success.sum() > 0
    assert not bool((alone.success & ~found.success).any())


def test_a_transfer_learns_from_the_surrogates_and_the_target_pays_nothing() -> None:
    model, other, x = mlp(), mlp(seed=5), images(30)
    y = labels_of(model, x)

    def plain(query: Query, batch: Batch) -> dict[str, Tensor]:
        """Without noise, which a transfer draws under its own name."""
        return {"delta": query.gradient(batch.ball.x, margin).gradient.double().mean(0).float().sign()}

    attack = Transfer(slope_attack(plain), (Surrogate(other, "other", "", ""),))
    rows = Rows().watch(model)
    found = rbl.evaluate(model, x, y, attack=attack, eps=0.2, checks=False)
    assert found.fit_forwards == 0
    alone = rbl.evaluate(other, x, y, attack=slope_attack(plain), eps=0.2, checks=False)
    assert torch.equal(found.learned["delta"], alone.learned["delta"])
    assert rows.count >= found.forwards == 60
