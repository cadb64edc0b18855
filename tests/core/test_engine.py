"""The engine: closed forms reached, verdicts that depend on nothing but the sample, exact counts, proofs, resuming."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.attack import Attack, State
from robustbench_lite.attacks.fgsm import FGSM
from robustbench_lite.attacks.noise import Noise
from robustbench_lite.attacks.pgd import PGD
from robustbench_lite.defenses.random_noise import RandomNoise
from robustbench_lite.engine import Engine
from robustbench_lite.errors import PluginError, UserError
from robustbench_lite.losses import margin
from robustbench_lite.network import Network, frozen
from robustbench_lite.result import finished_columns
from robustbench_lite.threat import LinfBall, Threat

from .nets import (
    SHAPE,
    Asks,
    Columns,
    Rows,
    binary,
    conv,
    differing,
    finish,
    images,
    join,
    labels_of,
    make_engine,
    mlp,
)


def run(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, threat: Threat, **options: Any) -> Columns:
    return finish(make_engine(model, x, y, attack, threat, **options))


def some_wrong(y: Tensor, classes: int) -> Tensor:
    """Every fifth label is another one, so that those samples are not attacked."""
    return torch.where(torch.arange(len(y)) % 5 == 0, (y + 1) % classes, y)


# -- closed forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "attack", [PGD(steps=20), PGD(steps=20, momentum=0.9, loss="dlr", random_start=False), FGSM(loss="margin")]
)
@pytest.mark.parametrize("target", [None, "all"])
def test_a_plane_is_crossed_exactly_where_eps_exceeds_the_distance(
    norm: str, attack: Attack, target: str | None
) -> None:
    plane = binary()
    x = images(60, low=0.45, high=0.55)
    y = labels_of(plane, x)
    distance = plane.distance(x, norm)
    eps = float(distance.median()) * 1.001
    found = run(plane, x, y, attack, Threat(norm, eps), target=target)
    # What a random start in l2 has across the gradient is worn off by the steps, not gone.
    short = 0.03 if norm == "l2" and getattr(attack, "random_start", False) else 1e-4
    sure = (distance - eps).abs() > short * eps
    assert int(sure.sum()) > 50
    assert torch.equal(found["success"][sure], (distance < eps)[sure])
    assert 0.3 < float(found["success"].double().mean()) < 0.7


def test_noise_finds_less_than_the_gradient_does() -> None:
    plane = binary()
    x = images(60, low=0.45, high=0.55)
    y = labels_of(plane, x)
    threat = Threat("linf", float(plane.distance(x, "linf").median()))
    by_noise = run(plane, x, y, Noise(), threat)["success"]
    by_gradient = run(plane, x, y, PGD(steps=10), threat)["success"]
    assert int(by_noise.sum()) < int(by_gradient.sum()) / 2


def test_restarts_find_more_and_lose_nothing() -> None:
    model, x = mlp(scale=4), images(80)
    y, threat = labels_of(model, x), Threat("linf", 0.1)
    one = run(model, x, y, Noise(restarts=1), threat)
    ten = run(model, x, y, Noise(restarts=10), threat)
    assert (ten["success"] >= one["success"]).all()
    assert int(ten["success"].sum()) > int(one["success"].sum())
    later = ten["success"] & ~one["success"]
    assert (ten["success_attempt"][later] > 0).all()
    assert ten["success_attempt"].max() < 10
    assert (ten["success_attempt"][one["success"]] == 0).all()


# -- a verdict depends on the sample alone -----------------------------------------------------------

ATTACKS = {
    "pgd": PGD(steps=6, restarts=2),
    "pgd-momentum": PGD(steps=5, momentum=0.7, restarts=2),
    "fgsm": FGSM(),
    "noise": Noise(restarts=3),
}


def deterministic(model: nn.Module, **options: Any) -> Network:
    network = Network(model, **options)
    network.block = network.uniform_block(SHAPE)
    return network


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize("target", [None, "random"])
def test_batch_size_order_and_shards_change_nothing_in_fixed_blocks(name: str, target: str | None) -> None:
    model, x = mlp(), images(41)
    y, threat = some_wrong(labels_of(model, x), 4), Threat("linf", 0.12)

    def rows(batch_size: int, order: Tensor | None = None) -> Columns:
        network = deterministic(model)
        return run(
            model, x, y, ATTACKS[name], threat, target=target, batch_size=batch_size, order=order, network=network
        )

    whole = rows(256)
    assert whole["success"].any()
    assert not whole["success"].all()
    assert differing(rows(1), whole) == []
    assert differing(rows(7), whole) == []
    assert differing(rows(37, torch.randperm(41, generator=torch.Generator().manual_seed(1))), whole) == []
    shards = join([rows(5, torch.arange(41)[part::4]) for part in range(4)])
    assert differing(shards, whole) == []


def test_without_fixed_blocks_the_verdicts_are_the_same() -> None:
    model, x = conv(), images(150)
    y, threat = labels_of(model, x), Threat("linf", 0.08)
    verdicts = [run(model, x, y, PGD(steps=8), threat, batch_size=size)["success"] for size in (1, 37, 256)]
    assert 0 < int(verdicts[0].sum()) < 150
    assert torch.equal(verdicts[0], verdicts[1])
    assert torch.equal(verdicts[1], verdicts[2])


def test_a_randomised_network_gives_the_same_verdicts_at_any_batch_size() -> None:
    base, x = mlp(), images(40)
    model = RandomNoise(sigma=0.05).wrap(base)
    y, threat = labels_of(base, x), Threat("linf", 0.1)

    def rows(size: int, seed: int = 0) -> Columns:
        network = deterministic(model, eot=3)
        return run(model, x, y, PGD(steps=4), threat, batch_size=size, votes=5, network=network, seed=seed)

    whole = rows(256)
    assert 0 < int(whole["success"].sum()) < 40
    assert differing(rows(1), whole) == []
    assert differing(rows(7), whole) == []
    assert "margin" in differing(rows(256, seed=1), whole)


def test_one_seed_one_result_and_another_seed_another() -> None:
    model, x = mlp(), images(30)
    y, threat = labels_of(model, x), Threat("l2", 0.4)
    first = run(model, x, y, PGD(steps=5), threat, seed=3)
    torch.manual_seed(99)
    assert differing(run(model, x, y, PGD(steps=5), threat, seed=3), first) == []
    assert "adversarial" in differing(run(model, x, y, PGD(steps=5), threat, seed=4), first)


def test_equal_images_get_equal_rows() -> None:
    model, x = mlp(), images(6)
    x[5] = x[0]
    found = run(model, x, labels_of(model, x), PGD(steps=3), Threat("linf", 0.1), network=deterministic(model))
    for name, column in found.items():
        if name != "index":
            assert torch.equal(column[0], column[5]), name


def test_the_random_state_is_left_alone() -> None:
    model, x = mlp(), images(8)
    y = labels_of(model, x)
    before = torch.random.get_rng_state()
    run(model, x, y, PGD(steps=2), Threat("l2", 0.4), target="random")
    assert torch.equal(torch.random.get_rng_state(), before)


# -- accounts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize("eot", [1, 3])
@pytest.mark.parametrize("stop", [True, False])
def test_rows_count_what_the_network_saw(name: str, eot: int, stop: bool) -> None:
    model, x = mlp(), images(33)
    y = some_wrong(labels_of(model, x), 4)
    seen = Rows().watch(model)
    network = Network(model, eot=eot)
    engine = make_engine(
        model, x, y, ATTACKS[name], Threat("linf", 0.1), network=network, batch_size=8, votes=eot, stop_on_success=stop
    )
    found = finish(engine)
    assert int(found["forwards"].sum()) == seen.count == network.forward_rows
    assert int(found["backwards"].sum()) == network.backward_rows
    assert (found["forwards"][~found["attacked"]] == eot).all()
    assert not found["backwards"][~found["attacked"]].any()


def test_a_failing_pgd_costs_its_steps_and_one_proof_a_restart() -> None:
    model, x = mlp(), images(10)
    found = run(model, x, labels_of(model, x), PGD(steps=7, restarts=3), Threat("linf", 1e-9))
    assert not found["success"].any()
    assert found["backwards"].tolist() == [21] * 10
    assert found["forwards"].tolist() == [1 + 3 * (7 + 1)] * 10


def test_without_stopping_the_same_samples_fall_and_all_steps_are_taken() -> None:
    model, x = mlp(), images(60)
    y, threat = labels_of(model, x), Threat("linf", 0.12)
    stopping = run(model, x, y, PGD(steps=9), threat, batch_size=16, network=deterministic(model))
    going = run(model, x, y, PGD(steps=9), threat, batch_size=16, stop_on_success=False, network=deterministic(model))
    assert torch.equal(going["success"], stopping["success"])
    assert (going["backwards"] == 9).all()
    assert (going["backwards"] >= stopping["backwards"]).all()
    assert int(stopping["backwards"].sum()) < int(going["backwards"].sum())
    fell = stopping["success"]
    assert torch.equal(going["success_step"][fell], stopping["success_step"][fell])
    assert (going["adversarial_margin"][fell] <= stopping["adversarial_margin"][fell]).all()


def test_the_misclassified_are_not_attacked() -> None:
    model, x = mlp(), images(40)
    right = labels_of(model, x)
    y = some_wrong(right, 4)
    found = run(model, x, y, PGD(steps=5), Threat("linf", 0.3))
    assert torch.equal(found["attacked"], right == y)
    skipped = ~found["attacked"]
    assert skipped.sum() == 8
    assert not found["success"][skipped].any()
    assert torch.equal(found["adversarial"][skipped], x[skipped])
    assert torch.equal(found["adversarial_margin"][skipped], found["margin"][skipped])
    assert (found["margin"][skipped] < 0).all()


# -- proof -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("target", [None, "random", "next", "least-likely", "all", 1])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_every_success_holds_in_a_pass_of_our_own(norm: str, target: str | int | None, classes: int) -> None:
    model, x = mlp(classes), images(40)
    y = some_wrong(labels_of(model, x), classes)
    threat = Threat(norm, 0.5 if norm == "linf" else 2.5)
    found = run(model, x, y, PGD(steps=10, restarts=2), threat, target=target, batch_size=16)
    fell = found["success"]
    assert fell.any()
    adversarial = found["adversarial"]
    assert threat.around(x).contains(adversarial).all()
    predicted = labels_of(model, adversarial)
    assert torch.equal(predicted, found["adversarial_prediction"])
    assert (predicted[fell] != y[fell]).all()
    logits = model(adversarial).detach()
    assert torch.allclose(-margin(logits, y).double(), found["adversarial_margin"], atol=1e-5)
    aimed = found["target"]
    if target is None:
        assert (aimed == -1).all()
        assert (predicted == y)[found["attacked"] & ~fell].all()
    else:
        assert torch.equal(predicted[fell], aimed[fell])
        assert not (predicted == aimed)[found["attacked"] & ~fell].any()
    if target == 1:
        assert not found["attacked"][y == 1].any()
    if target == "all":
        # Whoever is fooled at all is fooled: an image of a wrong class is never called robust.
        assert (predicted == y)[found["attacked"] & ~fell].all()


@pytest.mark.parametrize("attack", [Noise(), PGD(steps=1)])
def test_all_targets_in_turn_leave_no_misclassified_image_robust(attack: Attack) -> None:
    model, x = mlp(6, scale=3), images(80)
    y = labels_of(model, x)
    found = run(model, x, y, attack, Threat("linf", 0.3), target="all")
    assert int(found["success"].sum()) > 10
    predicted = labels_of(model, found["adversarial"])
    assert torch.equal(found["success"], predicted != y)
    assert torch.equal(found["target"][found["success"]], predicted[found["success"]])


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_a_search_in_low_precision_finds_nothing_that_float32_denies(precision: str) -> None:
    model, x = mlp(), images(120)
    y, threat = labels_of(model, x), Threat("linf", 0.1)
    network = Network(model, precision=precision)
    found = run(model, x, y, PGD(steps=8), threat, network=network, batch_size=50)
    exact = run(model, x, y, PGD(steps=8), threat)
    fell = found["success"]
    assert (labels_of(model, found["adversarial"])[fell] != y[fell]).all()
    assert threat.around(x).contains(found["adversarial"]).all()
    assert abs(int(fell.sum()) - int(exact["success"].sum())) <= 3


def test_a_claim_that_only_low_precision_believes_is_dropped() -> None:
    class Liar(nn.Module):
        """Wrong in bf16 on everything, right in float32."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            value = x.flatten(1).sum(1) * self.weight * 0 + (1 if x.dtype == torch.float32 else -1)
            return torch.stack([value, -value], 1)

    x = images(5)
    network = Network(Liar(), precision="bf16")
    found = run(Liar(), x, torch.zeros(5, dtype=torch.int64), PGD(steps=8), Threat("linf", 0.1), network=network)
    assert not found["success"].any()


def test_an_image_outside_the_ball_is_no_success() -> None:
    plane = binary()
    x = images(20, low=0.45, high=0.55)
    y = labels_of(plane, x)
    far = (1 - 2 * y).reshape(-1, 1, 1, 1) * plane.weight.detach().sign()

    def leap(query: Any, batch: Any, state: State) -> State:
        sign = (1 - 2 * batch.y).reshape(-1, 1, 1, 1) * plane.weight.detach().sign()
        query.logits(batch.ball.x + 10 * sign)
        return State(batch.ball.x + 10 * sign)

    assert (labels_of(plane, x + 10 * far) != y).all()
    threat = Threat("linf", float(plane.distance(x, "linf").min()) * 0.9)
    found = run(plane, x, y, Asks.make(leap, access="score"), threat)
    assert not found["success"].any()
    assert threat.around(x).contains(found["adversarial"]).all()


def test_the_proof_does_not_trust_the_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = binary()
    x = images(20, low=0.45, high=0.55)
    y = labels_of(plane, x)
    threat = Threat("linf", float(plane.distance(x, "linf").min()) * 0.9)

    def leap(query: Any, batch: Any, state: State) -> State:
        return State(1 - batch.ball.x)

    monkeypatch.setattr(LinfBall, "project", lambda self, candidate: candidate)
    found = run(plane, x, y, Asks.make(leap), threat)
    assert not found["success"].any()


def test_the_end_of_a_search_in_low_precision_is_done_in_float32() -> None:
    class Notes(nn.Module):
        """Remembers in which type it was asked for gradients."""

        seen: ClassVar[list[torch.dtype]] = []

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                self.seen.append(x.dtype)
            value = x.flatten(1).mean(1) * self.weight
            return torch.stack([value + 9, value * 0], 1)

    model, x = Notes(), images(5)
    network = Network(model, precision="bf16")
    run(model, x, torch.zeros(5, dtype=torch.int64), PGD(steps=8), Threat("linf", 0.1), network=network)
    assert Notes.seen == [torch.bfloat16] * 6 + [torch.float32] * 2


def test_an_attack_that_writes_over_the_clean_images_is_found_out() -> None:
    def creep(query: Any, batch: Any, state: State) -> State:
        batch.ball.x.add_(0.05)
        return State(batch.ball.x.clone())

    model, x = mlp(), images(4)
    with pytest.raises(UserError, match="attack planted: it changed its batch in place"):
        run(model, x, labels_of(model, x), Asks.make(creep), Threat("linf", 0.1))


# -- the contract with an attack ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            lambda q, b, s: State(s.candidate[:1]),
            r"state\.candidate of torch\.float32 \(4, 1, 6, 6\), got .*\(1, 1, 6, 6\)",
        ),
        (lambda q, b, s: State(s.candidate.double()), r"got torch\.float64"),
        (lambda q, b, s: None, "got NoneType"),
        (lambda q, b, s: State(s.candidate * float("nan")), "NaN or infinite pixels"),
    ],
)
def test_a_broken_state_is_one_line_that_names_the_attack(step: Any, message: str) -> None:
    model, x = mlp(), images(4)
    with pytest.raises(UserError, match=message) as raised:
        run(model, x, labels_of(model, x), Asks.make(step), Threat("linf", 0.1))
    assert str(raised.value).startswith("attack")
    assert "\n" not in str(raised.value)


@dataclasses.dataclass(frozen=True)
class Odd(State):
    extra: Tensor


def test_a_state_with_something_that_is_not_of_the_samples() -> None:
    attack = Asks.make(lambda q, b, s: Odd(s.candidate, torch.zeros(3)))
    model, x = mlp(), images(4)
    with pytest.raises(UserError, match=r"attack planted: expected state\.extra with one row for each of 4 samples"):
        run(model, x, labels_of(model, x), attack, Threat("linf", 0.1))


def test_an_attack_that_raises_is_named_with_its_own_traceback() -> None:
    def burst(query: Any, batch: Any, state: State) -> State:
        raise ZeroDivisionError("oh")

    model, x = mlp(), images(4)
    with pytest.raises(PluginError, match="attack planted raised ZeroDivisionError: oh") as raised:
        run(model, x, labels_of(model, x), Asks.make(burst), Threat("linf", 0.1))
    assert "in burst" in "".join(raised.value.__notes__)


def test_finished_samples_leave_early() -> None:
    attack = Asks.make(
        lambda q, b, s: (q.logits(s.candidate), s)[1],
        length=50,
        access="score",
        finished=lambda self, batch, state: batch.step >= 1 + (batch.y % 3),
    )
    model, x = mlp(), images(12)
    y = labels_of(model, x)
    found = run(model, x, y, attack, Threat("linf", 0.01), batch_size=5)
    assert torch.equal(found["forwards"], 1 + (1 + y % 3) + 1)


# -- stored and restored ---------------------------------------------------------------------------------


def interrupted(make: Any, every: int) -> Columns:
    """A run whose engine is thrown away after every k-th yield and goes on in a fresh one."""
    parts: list[Columns] = []
    stored: dict[str, Tensor] | None = None
    while True:
        engine: Engine = make()
        with frozen(engine.network.model), torch.no_grad():
            if stored is not None:
                engine.restore({name: tensor.clone() for name, tensor in stored.items()})
            for count, (entry, x) in enumerate(engine.run(), 1):
                if len(entry.y):
                    parts.append(finished_columns(entry, x, keep_images=True))
                if count == every:
                    stored = engine.snapshot()
                    break
            else:
                return join(parts)


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize(("target", "stop"), [(None, True), ("all", False), ("random", True)])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_stored_engine_goes_on_to_the_same_rows(name: str, target: str | None, stop: bool, every: int) -> None:
    model, x = mlp(), images(50)
    y = some_wrong(labels_of(model, x), 4)

    def make() -> Engine:
        return make_engine(
            model, x, y, ATTACKS[name], Threat("l2", 0.5), batch_size=16, target=target, stop_on_success=stop
        )

    assert differing(interrupted(make, every), finish(make())) == []


def test_a_randomised_search_in_low_precision_goes_on_to_the_same_rows() -> None:
    base, x = mlp(), images(20)
    model, y = RandomNoise(sigma=0.05).wrap(base), labels_of(base, images(20))

    def make() -> Engine:
        network = Network(model, eot=2, precision="bf16")
        attack = PGD(steps=6, momentum=0.5)
        return make_engine(model, x, y, attack, Threat("linf", 0.1), batch_size=8, votes=3, network=network)

    assert differing(interrupted(make, 3), finish(make())) == []


def test_what_is_stored_can_be_written_even_where_a_state_shares_its_memory(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    shares = Asks.make(
        lambda q, b, s: Odd(s.candidate, s.candidate),
        lambda q, b: Odd(b.ball.x.clone(), b.ball.x),
        length=3,
    )
    model, x = mlp(), images(9)
    engine = make_engine(model, x, labels_of(model, x), shares, Threat("linf", 0.1), batch_size=4)
    with frozen(model), torch.no_grad():
        steps = engine.run()
        for _ in range(3):
            next(steps)
    save_file(engine.snapshot(), tmp_path / "engine.safetensors")
    assert "active.state.extra" in load_file(tmp_path / "engine.safetensors")


def test_a_store_that_does_not_fit_leaves_the_engine_at_its_beginning() -> None:
    model, x = mlp(), images(20)
    y = labels_of(model, x)

    def make() -> Engine:
        return make_engine(model, x, y, PGD(steps=4), Threat("linf", 0.1), batch_size=6)

    engine = make()
    with frozen(model), torch.no_grad():
        steps = engine.run()
        for _ in range(4):
            next(steps)
    stored = engine.snapshot()
    del stored["active.state.velocity"]
    fresh = make()
    with pytest.raises(KeyError), frozen(model), torch.no_grad():
        fresh.restore(stored)
    assert differing(finish(fresh), finish(make())) == []


def test_the_batch_stays_full() -> None:
    """While samples wait, at most an eighth of the places is free."""
    model, x = mlp(), images(90)
    sizes: list[tuple[int, int]] = []

    @dataclasses.dataclass(frozen=True)
    class Watched(PGD):
        def step(self, query: Any, batch: Any, state: Any) -> Any:
            waiting = 0 if engine.waiting is None else len(engine.waiting.y)
            sizes.append((len(batch.y), len(engine.source) - engine.cursor + waiting))
            return super().step(query, batch, state)

    engine = make_engine(model, x, labels_of(model, x), Watched(steps=12), Threat("linf", 0.12), batch_size=16)
    finish(engine)
    full = [size for size, left in sizes if left]
    assert len(full) > 5
    assert 15 <= min(full) <= max(full) <= 16
