"""A portfolio is its parts in turn: what each finds is what it would find alone, and survivors are passed on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

import robustbench_lite as rbl
from robustbench_lite import portfolio
from robustbench_lite.attack import Attack
from robustbench_lite.attacks.fgsm import FGSM
from robustbench_lite.attacks.noise import Noise
from robustbench_lite.attacks.pgd import PGD
from robustbench_lite.engine import Engine
from robustbench_lite.errors import UserError
from robustbench_lite.network import Network, frozen
from robustbench_lite.portfolio import Chain, Part, Portfolio, engine_for
from robustbench_lite.rows import take
from robustbench_lite.threat import Threat

from .nets import Columns, Rows, TensorSource, differing, images, join, labels_of, make_engine, mlp
from .nets import finish as finish_engine
from .test_minimal import nearing

THREAT = Threat("linf", 0.05)


@dataclass(frozen=True)
class Three(Portfolio):
    """Noise, one step, many steps."""

    name: ClassVar[str] = "three"
    summary: ClassVar[str] = "planted"
    source: ClassVar[str] = "none"

    def parts(self, threat: Threat) -> tuple[Attack, ...]:
        return Noise(), FGSM(), PGD(steps=20), PGD(steps=20)


@dataclass(frozen=True)
class Nearest(Portfolio):
    """A minimal attack, then a fixed-eps one."""

    name: ClassVar[str] = "nearest"
    summary: ClassVar[str] = "planted"
    source: ClassVar[str] = "none"

    def parts(self, threat: Threat) -> tuple[Attack, ...]:
        return nearing(), PGD(steps=10)


def make(attack: Portfolio, *, count: int = 90, threat: Threat = THREAT, **settings: Any) -> Chain:
    model = mlp(scale=4.0)
    x = images(count)
    y = labels_of(model, x)
    y = torch.where(torch.arange(count) % 7 == 0, (y + 1) % 4, y)
    source = TensorSource(x, y, threat.each(count))
    chain = engine_for(attack, Network(model), source, threat=threat, **settings)
    assert isinstance(chain, Chain)
    return chain


def finish(chain: Chain) -> Columns:
    return finish_engine(chain)  # type: ignore[arg-type]


def alone(attack: Attack) -> Columns:
    chain = make(Three())
    source = chain.source
    assert isinstance(source, TensorSource)
    return finish_engine(make_engine(chain.network.model, source.x, source.y, attack, THREAT))


def test_it_finds_what_its_parts_find_alone_and_no_more() -> None:
    found = finish(make(Three()))
    parts = [alone(attack) for attack in (Noise(), FGSM(), PGD(steps=20))]
    union = torch.stack([part["success"] for part in parts]).any(0)
    assert torch.equal(union & ~found["success"], torch.zeros(90, dtype=torch.bool))
    # The last part is the same attack with other random numbers; it may add a few.
    assert int(found["success"].sum()) <= int(union.sum()) + 5
    assert 0 < int(parts[0]["success"].sum()) < int(union.sum()) < int(found["attacked"].sum())
    first = parts[0]["success"]
    assert torch.equal(found["forwards"][first], parts[0]["forwards"][first])


def test_the_same_attack_twice_draws_anew() -> None:
    @dataclass(frozen=True)
    class Twice(Three):
        def parts(self, threat: Threat) -> tuple[Attack, ...]:
            return PGD(steps=1), PGD(steps=1)

    chain = make(Twice())
    seen = []
    for number in (0, 1):
        chain.part = number
        engine = chain._engine(None)
        with frozen(chain.network.model), torch.no_grad():
            list(engine._fill())
        assert engine.active is not None
        seen.append(engine.active.batch.stream.keys)
    assert not torch.equal(*seen)


@pytest.mark.parametrize("size", [1, 16, 256])
def test_the_batch_does_not_matter(size: int) -> None:
    whole, part = finish(make(Three())), finish(make(Three(), batch_size=size))
    assert torch.equal(whole["success"], part["success"])
    assert torch.equal(whole["forwards"], part["forwards"])


def test_cohorts_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finish(make(Three(), batch_size=16))
    monkeypatch.setattr(portfolio, "_COHORT", 30)
    chain = make(Three(), batch_size=16)
    assert chain.size == 32
    part = finish(chain)
    assert torch.equal(whole["index"], part["index"])
    assert torch.equal(whole["success"], part["success"])
    assert torch.equal(whole["forwards"], part["forwards"])


def test_the_calls_told_are_the_calls_seen() -> None:
    chain = make(Three())
    rows = Rows().watch(chain.network.model)
    found = finish(chain)
    assert rows.count == int(found["forwards"].sum())


@pytest.mark.parametrize("moment", [1, 3, 9, 14, 30])
def test_a_stored_run_goes_on_to_the_last_bit(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portfolio, "_COHORT", 60)
    whole = finish(make(Three(), batch_size=16))
    chain = make(Three(), batch_size=16)
    before = []
    with frozen(chain.network.model), torch.no_grad():
        for _, (entry, x) in zip(range(moment), chain.run(), strict=False):
            if len(entry.y):
                before.append(rbl.result.finished_columns(entry, x, keep_images=True))
        stored = chain.snapshot()
    other = make(Three(), batch_size=16)
    other.restore(stored)
    assert differing(whole, join([*before, finish(other)])) == []


def test_a_minimal_part_stops_within_eps_and_leaves_nothing_beyond() -> None:
    threat = Threat("linf", 0.35)
    found = finish(make(Nearest(), threat=threat))
    assert (found["distance_linf"] <= 0.35 + 1e-6).all()
    lone = make(Nearest(), threat=threat)
    lone.part = 0
    engine: Engine = lone._engine(None)
    engine.within = False
    full = finish_engine(engine)
    won = full["success"]
    assert won.any()
    assert found["success"][won].all()
    assert int(found["forwards"][won].sum()) < int(full["forwards"][won].sum())


def test_a_limit_of_queries_binds_the_whole() -> None:
    found = finish(make(Three(), max_queries=9))
    assert int(found["forwards"].max()) <= 9


def test_a_run_file_says_the_parts(tmp_path: object) -> None:
    model = mlp(scale=4.0)
    x = images(20)
    found = rbl.evaluate(model, x, labels_of(model, x), attack=Three(), norm="linf", eps=0.05)
    parts = found.run.specification.attack.resolved["parts"]
    assert [part["name"] for part in parts] == ["noise", "fgsm", "pgd", "pgd"]
    assert parts[2]["steps"] == 20


def test_a_portfolio_cannot_train() -> None:
    with pytest.raises(UserError, match="a portfolio of attacks cannot stand here"):
        rbl.perturb(mlp(), images(4), torch.zeros(4, dtype=torch.int64), attack=Three(), eps=0.1)


def test_a_search_is_passed_by_where_searches_do_worse_and_what_comes_after_is_not() -> None:
    gradient, search = PGD(steps=1), Noise()
    chain = make(Three(), count=4)
    chain.parts = tuple(
        (part, "")
        for part in (
            Part(gradient),
            Part(search),
            Part(search, hope=0.2),
            Part(gradient, hope=0.2),
            Part(search, hope=0.1, warm="margin"),
        )
    )
    entry, _ = next(
        (entry, x) for entry, x in make(Three(), count=4, threat=Threat("linf", 1e-9)).run() if len(entry.y)
    )
    entry = take(entry, torch.zeros(5, dtype=torch.int64))
    ends = torch.tensor([[0.15, 0.3], [0.15, 0.9], [0.05, 0.9], [0.5, 0.9], [0.5, 0.4]]).double()
    ends = torch.cat([ends, torch.full((5, 1), torch.inf).double()], 1)
    entry = replace(
        entry,
        attacked=torch.ones(5, dtype=torch.bool),
        success=torch.zeros(5, dtype=torch.bool),
        margin=torch.ones(5).double(),
        ends_missing=ends,
    )
    chain.part = 1
    # Near by both; near by gradients alone; the same, and on to the last; by none; nearer without gradients than with.
    assert chain._next(entry).tolist() == [2, 3, 3, 5, 2]
    chain.part = 3
    assert chain._next(entry).tolist() == [5, 5, 4, 5, 4]


def test_a_search_from_outside_enters_by_distance_and_where_ascents_promise_less() -> None:
    entry, _ = next(
        (entry, x) for entry, x in make(Three(), count=4, threat=Threat("linf", 1e-9)).run() if len(entry.y)
    )
    entry = take(entry, torch.zeros(5, dtype=torch.int64))
    # Ascents lowered the margin from 1 to these: at this rate the goal is at 1.25, 10, 1.25, 10 and 10 eps.
    missed = torch.tensor([0.2, 0.9, 0.2, 0.9, 0.9]).double()
    inf = torch.full((5,), torch.inf).double()
    entry = replace(
        entry,
        margin=torch.ones(5).double(),
        eps=torch.full((5,), 2.0),
        ends_missing=torch.stack([missed, inf, inf], 1),
        nearest=entry.adversarial,
        nearest_distance=2 * torch.tensor([1.2, 1.4, 1.4, 3.0, torch.inf]).double(),
    )
    assert Part(PGD(), max_distance=1.5).enters(entry).tolist() == [True, True, False, False, False]
    assert Part(PGD(), max_distance=3.0).enters(entry).tolist() == [True, True, False, True, True]
    # A short ascent from the nearest example asks for the distance alone.
    assert Part(PGD(), max_distance=1.5, warm="nearest").enters(entry).tolist() == [True, True, True, False, False]


def test_a_part_begins_at_the_nearest_example_projected_into_the_ball() -> None:
    threat = Threat("linf", 0.02)
    begins: list[torch.Tensor] = []

    @dataclass(frozen=True)
    class Begins(PGD):
        def start(self, query: Any, batch: Any) -> Any:
            begins.append(batch.ball.distance(batch.origin))
            return super().start(query, batch)

    @dataclass(frozen=True)
    class Outside(Three):
        def parts(self, threat: Threat) -> tuple[Attack | Part, ...]:  # type: ignore[override]
            return nearing(), Part(Begins(steps=1), max_distance=1e9, warm="nearest")

    finish(make(Outside(), threat=threat))
    distance = torch.cat(begins)
    # On the ball's edge, but for the pixels that the valid range stops.
    assert len(distance) and (distance <= 0.02).all() and float(distance.median()) > 0.019
