"""A training that is killed goes on, many processes train as one, and the best epoch is kept."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustbench_lite import resuming
from robustbench_lite.data.dataset import ArrayDataset, content_hash
from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.errors import UserError
from robustbench_lite.history import History, draw_history, write_history
from robustbench_lite.loop import TrainingProgress
from robustbench_lite.models import state_sha256
from robustbench_lite.recipe import Recipe, lr_factor, make_optimizer, recipe_for
from robustbench_lite.training import Trainer, train_model

SHAPE = (1, 6, 6)


def data(n: int = 60) -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    x = 0.3 * torch.rand(n, *SHAPE, generator=generator)
    for i, label in enumerate(y.tolist()):
        x[i, :, 2 * label : 2 * label + 2] += 0.6
    return ArrayDataset("bands", "train", ("a", "b", "c"), SHAPE, y, content_hash(x, y), x)


def net(*, random: bool = True) -> nn.Module:
    torch.manual_seed(3)
    extra: list[nn.Module] = [nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)] if random else [nn.ReLU()]
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), *extra, nn.Linear(8, 3))


@dataclass(frozen=True)
class Remembers(TrainingDefense):
    """Learns from attacked images, and from the mean of all images it saw."""

    name = "remembers"
    summary = source = "this test"
    norm: str = "linf"
    eps: float = 0.1

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        mean = trainer.memory.get("mean", torch.zeros_like(x[0]))
        trainer.memory["mean"] = 0.9 * mean + 0.1 * x.mean(0)
        trainer.note("brightness", float(x.mean()))
        seen = trainer.perturb(network, x, y, attack="pgd", norm=self.norm, eps=self.eps, options={"steps": 2})
        return inner(network, 0.9 * seen + 0.1 * trainer.memory["mean"], y)


@dataclass(frozen=True)
class Twice(TrainingDefense):
    """Two trainings one after another."""

    name = "twice"
    summary = source = "this test"

    def fit(self, model: nn.Module, data: Any, trainer: Trainer) -> nn.Module:
        first = trainer.fit(net(), data)
        loss = lambda network, x, y: (network(x) - first(x).detach()).square().mean()  # noqa: E731
        return trainer.fit(model, data, loss=loss)


@dataclass(frozen=True)
class OneNetworkTwice(TrainingDefense):
    """A copy of the network, after a first training, teaches the same network in a second one."""

    name = "one-network-twice"
    summary = source = "this test"

    def fit(self, model: nn.Module, data: Any, trainer: Trainer) -> nn.Module:
        teacher = copy.deepcopy(trainer.fit(model, data))
        return trainer.fit(model, data, loss=lambda network, x, y: (network(x) - 2 * teacher(x)).square().mean())


@dataclass(frozen=True)
class Draws(TrainingDefense):
    """Draws a number in each step, and does nothing with it."""

    name = "draws"
    summary = source = "this test"
    drawn: ClassVar[list[Tensor]] = []

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        del trainer
        self.drawn.append(torch.rand(()))
        return inner(network, x, y)


class Killed(BaseException):
    pass


def kill_after(steps: int) -> Any:
    seen = []

    def progress(p: TrainingProgress) -> None:
        seen.append(p)
        if len(seen) == steps:
            raise Killed

    return progress


RECIPES = {
    "plain": Recipe(epochs=3, batch_size=16),
    "everything": Recipe(
        epochs=3, batch_size=16, optimizer="adam", lr=0.01, ema=0.9, accumulate=3, validation=15, augment="crop-flip"
    ),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(
    ("defense", "steps"),
    [
        *((Remembers(), steps) for steps in (1, 2, 4, 5, 7, 8)),
        *((defense, steps) for defense in (Twice(), OneNetworkTwice()) for steps in (2, 5, 8, 14, 17)),
    ],
)
def test_a_killed_training_goes_on_to_the_same_network(
    defense: TrainingDefense, recipe: Recipe, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "EVERY", 0.0)
    whole = History()
    told: list[str] = []
    unbroken = train_model(net(), data(), recipe=recipe, defenses=[defense], history=whole)
    kept = tmp_path / "net.training"
    run = {"recipe": recipe, "defenses": [defense], "checkpoint": kept}
    with pytest.raises(Killed):
        train_model(net(), data(), progress=kill_after(steps), **run)  # type: ignore[arg-type]
    assert kept.exists() == (steps > 1)
    again = History()
    trained = train_model(net(), data(), history=again, say=told.append, **run)  # type: ignore[arg-type]
    assert state_sha256(trained) == state_sha256(unbroken)
    assert not kept.exists()
    without = [{name: value for name, value in row.items() if name != "seconds"} for row in again.rows]
    assert without == [{name: value for name, value in row.items() if name != "seconds"} for row in whole.rows]
    assert any("going on with a training" in line for line in told) == (steps > 1)


def test_a_file_that_is_not_this_training_is_named_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "EVERY", 0.0)
    kept = tmp_path / "net.training"
    recipe = Recipe(epochs=3, batch_size=16)
    with pytest.raises(Killed):
        train_model(net(), data(), recipe=recipe, checkpoint=kept, progress=kill_after(5))
    before = kept.read_bytes()
    for other in (Recipe(epochs=3, batch_size=16, seed=1), Recipe(epochs=4, batch_size=16)):
        with pytest.raises(UserError, match=r"net\.training is of another training .* left alone"):
            train_model(net(), data(), recipe=other, checkpoint=kept)
    assert kept.read_bytes() == before
    for content in (b"", before[:200], b"something else"):
        kept.write_bytes(content)
        with pytest.raises(UserError, match=r"net\.training cannot be read .* left alone"):
            train_model(net(), data(), recipe=recipe, checkpoint=kept)
        assert kept.read_bytes() == content


def test_two_processes_train_the_network_of_one(tmp_path: Path) -> None:
    """Each learns from its part of every batch: the same up to rounding, and the same in both to the last bit."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            import torch
            from test_training_kept import Draws, data, net
            from robustbench_lite.models import state_sha256
            from robustbench_lite.processes import Processes
            from robustbench_lite.recipe import Recipe
            from robustbench_lite.training import train_model
            recipe = Recipe(epochs=2, batch_size=16, validation=6)
            network = train_model(net(random=False), data(), recipe=recipe, defenses=[Draws()])
            mine = Processes.of_torchrun("cpu")
            kept = {{"network": network.state_dict(), "drawn": torch.stack(Draws.drawn)}}
            torch.save(kept, {str(tmp_path)!r} + f"/{{mine.rank}}.pt")
            """
        )
    )
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(run, check=True, capture_output=True, timeout=300, env=env)
    alone = train_model(net(random=False), data(), recipe=Recipe(epochs=2, batch_size=16, validation=6)).state_dict()
    kept = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    first, second = (each["network"] for each in kept)
    drawn = torch.cat([each["drawn"] for each in kept]).tolist()
    assert len(drawn) == len(set(drawn)) > 4  # no noise twice, in no process and no epoch
    start = net(random=False).state_dict()
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], tensor, atol=1e-6)
        assert not torch.allclose(first[name], start[name], atol=1e-3)


def test_gradients_of_several_batches_make_one_step() -> None:
    """Four batches of 15 averaged are one of 60: the same network, one step an epoch."""
    base = {"epochs": 4, "augment": "none", "schedule": "constant", "lr": 0.1}
    one, four = (
        train_model(net(random=False), data(), recipe=Recipe(**base, **more))  # type: ignore[arg-type]
        for more in ({"batch_size": 60}, {"batch_size": 15, "accumulate": 4})
    )
    for a, b in zip(one.parameters(), four.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_short_last_group_weighs_as_much_as_the_others() -> None:
    """Batches of 20, 20 and 20 by twos: steps of the mean over the first 40 images and over the last 20."""
    recipe = Recipe(epochs=2, batch_size=20, accumulate=2, augment="none", schedule="constant", lr=0.1)
    found, by_hand, given = train_model(net(random=False), data(), recipe=recipe), net(random=False), data()
    order = torch.Generator().manual_seed(recipe.seed)
    optimizer = make_optimizer(recipe, list(by_hand.parameters()))
    for _ in range(2):
        for rows in torch.split(torch.randperm(60, generator=order), 40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(by_hand(given.images(rows)), given.labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for a, b in zip(found.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_running_average_is_what_is_kept() -> None:
    """By hand: after each step average = decay average + (1 - decay) weights, from the first weights on."""
    seen: list[Tensor] = []
    model = net(random=False)
    recipe = Recipe(epochs=2, batch_size=30, ema=0.8, augment="none")

    def progress(_: TrainingProgress) -> None:
        seen.append(next(model.parameters()).detach().clone())

    kept = next(train_model(model, data(), recipe=recipe, progress=progress).parameters())
    average = seen[0]
    for weights in seen[1:]:
        average = 0.8 * average + 0.2 * weights
    assert torch.allclose(kept, average, atol=1e-6)
    assert not torch.allclose(kept, seen[-1], atol=1e-4)


def test_the_best_epoch_is_kept_not_the_last() -> None:
    """A loss that from the third epoch on unlearns."""
    history = History()

    def spoilt(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        sign = 1.0 if trainer.done < 0.5 else -0.3
        return sign * nn.functional.cross_entropy(network(x), y)

    recipe = Recipe(epochs=4, batch_size=10, validation=15, lr=0.1, schedule="constant", augment="none")
    trainer = Trainer(recipe)
    trainer.history = history
    model = trainer.fit(net(random=False), data(), loss=spoilt)
    accuracies = [row["validation_accuracy"] for row in history.rows]
    assert accuracies[-1] < max(accuracies)
    held = data()
    index = torch.tensor([row for row in range(60) if row not in _learned(recipe)])
    with torch.no_grad():
        right = (model(held.array[index]).argmax(1) == held.labels[index]).float().mean()
    assert float(right) == pytest.approx(max(accuracies))


def _learned(recipe: Recipe) -> set[int]:
    from robustbench_lite.validation import Validation

    validation = Validation.of(data(), recipe, None)
    assert validation is not None
    return set(validation.rest(60).tolist())


def test_what_is_held_out_is_attacked_where_a_defense_states_its_threat() -> None:
    history = History()
    recipe = Recipe(epochs=2, batch_size=16, validation=15)
    train_model(net(), data(), recipe=recipe, defenses=[Remembers(eps=0.3)], history=history)
    for row in history.rows:
        assert 0 <= row["validation_robust_accuracy"] <= row["validation_accuracy"] <= 1
        assert 0 < row["brightness"] < 1
    with pytest.raises(UserError, match=r"^validation: at most half of the 60 training images"):
        train_model(net(), data(), recipe=Recipe(validation=31))


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_lower_precision_learns_with_weights_in_float32(precision: Any) -> None:
    recipe = Recipe(epochs=15, batch_size=16, precision=precision, augment="none", lr=0.1)
    seen: set[torch.dtype] = set()
    model = net(random=False)
    list(model.children())[1].register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    trained = train_model(model, data(), recipe=recipe)
    assert {"bf16": torch.bfloat16, "f16": torch.float16}[precision] in seen
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    with torch.no_grad():
        assert float((trained(data().array).argmax(1) == data().labels).float().mean()) > 0.9


def test_schedules() -> None:
    assert [lr_factor("cyclic", done) for done in (0.0, 0.2, 0.4, 0.7, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [lr_factor("step", done) for done in (0.0, 0.49, 0.5, 0.74, 0.75)] == [1, 1, 0.1, 0.1, 0.01]


@dataclass(frozen=True)
class States(TrainingDefense):
    name = "states"
    summary = source = "this test"
    recipe = {"lr": 0.2, "schedule": "cyclic"}  # noqa: RUF012


@dataclass(frozen=True)
class StatesToo(TrainingDefense):
    name = "states-too"
    summary = source = "this test"
    recipe = {"lr": 0.3, "optimizer": "adam"}  # noqa: RUF012


def test_what_the_user_leaves_open_the_first_defense_states() -> None:
    recipe = recipe_for([States(), StatesToo()], {"schedule": "constant", "epochs": "3"}, argument="--train-option")
    assert (recipe.lr, recipe.schedule, recipe.optimizer, recipe.epochs) == (0.2, "constant", "adam", 3)
    assert recipe_for([], {}, argument="x") == Recipe()


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".parquet"])
def test_a_history_is_a_table_and_a_picture(suffix: str, tmp_path: Path) -> None:
    history = History()
    train_model(net(), data(), recipe=Recipe(epochs=3, validation=15), defenses=[Remembers()], history=history)
    write_history(history.rows, tmp_path / f"h{suffix}")
    read = (pd.read_csv if suffix.lower() == ".csv" else pd.read_parquet)(tmp_path / f"h{suffix}")
    assert list(read["epoch"]) == [1, 2, 3]
    assert list(read.columns[:3]) == ["stage", "epoch", "loss"]
    draw_history(history.rows, tmp_path / "h.png", title="bands")
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
