"""Training: what a recipe does, that it repeats itself, and that a trained network is kept."""

from __future__ import annotations

import errno
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lite.augment import augment
from robustbench_lite.cache import cache_dir
from robustbench_lite.data.dataset import ArrayDataset, content_hash
from robustbench_lite.decided import describe
from robustbench_lite.defense import Loss, TrainingDefense
from robustbench_lite.defenses import fast_at
from robustbench_lite.defenses.fast_at import FastAT
from robustbench_lite.errors import PluginError, UserError
from robustbench_lite.files import sha256_file, write_whole
from robustbench_lite.history import History
from robustbench_lite.loop import TrainingProgress
from robustbench_lite.models import LoadedModel, build_model, load_model, state_sha256
from robustbench_lite.recipe import Recipe, epochs_for, lr_factor
from robustbench_lite.training import Trainer, train_model

SHAPE = (1, 8, 8)
QUICK = Recipe(epochs=3, batch_size=16)


def bars(n: int = 90, *, seed: int = 0) -> ArrayDataset:
    """Three classes told apart by which third of the rows is bright."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = 0.2 * torch.rand(n, *SHAPE, generator=generator)
    for i, label in enumerate(y.tolist()):
        x[i, :, 2 + 2 * label : 4 + 2 * label] += 0.7
    return ArrayDataset("bars", "train", ("top", "middle", "bottom"), SHAPE, y, content_hash(x, y), x)


def net(name: str = "small-cnn") -> nn.Module:
    return build_model(name, n_classes=3, shape=SHAPE)


def accuracy(model: nn.Module, data: ArrayDataset) -> float:
    with torch.no_grad():
        return float((model(data.array).argmax(1) == data.labels).float().mean())


class BatchNormNet(nn.Module):
    """Has what a plain network has not: running statistics, and its own randomness."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_training_learns(optimizer: Any, schedule: Any) -> None:
    recipe = Recipe(
        epochs=10,
        batch_size=16,
        optimizer=optimizer,
        schedule=schedule,
        lr=0.05 if optimizer == "sgd" else 2e-3,
        augment="none",
        label_smoothing=0.05,
    )
    model = net()
    before = accuracy(model, bars(seed=1))
    assert train_model(model, bars(), recipe=recipe) is model
    assert not model.training
    assert accuracy(model, bars(seed=1)) == 1.0 > before


def numpy_state() -> np.ndarray[Any, Any]:
    state = np.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    return state[1].copy()


def test_same_seed_same_weights_and_global_state_untouched() -> None:
    before = torch.get_rng_state(), numpy_state(), random.getstate()
    hashes = []
    for seed in (0, 0, 1):
        torch.rand(seed + 1)  # where the global stream stands must not matter
        initial = net_with_randomness()
        state = torch.get_rng_state()
        train_model(initial, bars(), recipe=Recipe(epochs=2, batch_size=16, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        hashes.append(state_sha256(initial))
    assert hashes[0] == hashes[1] != hashes[2]
    assert np.array_equal(numpy_state(), before[1])
    assert random.getstate() == before[2]


def net_with_randomness() -> nn.Module:
    model = BatchNormNet()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def test_order_and_augmentation_depend_on_the_seed_alone() -> None:
    seen: list[list[Tensor]] = []
    for seed in (0, 0, 1):
        images: list[Tensor] = []

        def loss(model: nn.Module, x: Tensor, y: Tensor, images: list[Tensor] = images) -> Tensor:
            images.append(x.clone())
            return F.cross_entropy(model(x), y)

        Trainer(Recipe(epochs=2, batch_size=16, seed=seed)).fit(net(), bars(), loss=loss)
        seen.append(images)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    assert not torch.equal(seen[0][0], seen[2][0])
    assert not torch.equal(seen[0][0], seen[0][6]), "a second epoch in the order of the first"


@pytest.mark.parametrize("n", [2, 3, 17, 33, 90])
def test_progress_counts_and_no_batch_of_one(n: int) -> None:
    reports: list[TrainingProgress] = []
    sizes: list[int] = []

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(x))
        return F.cross_entropy(model(x), y)

    recipe = Recipe(epochs=2, batch_size=16)
    Trainer(recipe, progress=reports.append).fit(net_with_randomness(), bars(n), loss=loss)
    assert min(sizes) >= 2
    assert max(sizes) <= 16
    assert n - 1 <= sum(sizes) // 2 <= n
    batches = reports[0].batches
    assert [(r.epoch, r.batch) for r in reports] == [(e, b) for e in (1, 2) for b in range(1, batches + 1)]
    assert all(r.epochs == 2 and r.batches == batches and 0 <= r.accuracy <= 1 for r in reports)


def test_progress_tells_loss_and_accuracy_of_what_was_learnt_from() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([5.0, 0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), 3)

    reports: list[TrainingProgress] = []
    Trainer(Recipe(epochs=1, batch_size=90, lr=1e-9), progress=reports.append).fit(Fixed(), bars())
    assert reports[-1].accuracy == pytest.approx(1 / 3)
    assert reports[-1].loss == pytest.approx(math.log(math.exp(5) + 2) - 5 / 3, rel=1e-5)


def test_a_loss_that_is_no_number_names_lr() -> None:
    model = net()
    with pytest.raises(UserError, match=r"^lr: the loss became (nan|inf) in epoch \d+ .*lower lr, it is 1e\+20$"):
        train_model(model, bars(), recipe=Recipe(epochs=3, lr=1e20))
    assert not model.training
    assert not model._forward_hooks


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("weight_decay", -1.0),
        ("label_smoothing", 1.0),
        ("optimizer", "rmsprop"),
        ("schedule", "linear"),
        ("augment", "mixup"),
        ("seed", -1),
        ("seed", 2**31),
    ],
)
def test_a_recipe_out_of_range_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{field} must be "):
        Recipe(**{field: value})


def test_nothing_to_train() -> None:
    with pytest.raises(UserError, match="no parameters"):
        train_model(nn.Flatten(), bars(), recipe=QUICK)
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        train_model(net(), bars(1), recipe=QUICK)


def test_epochs_follow_the_size_of_the_set() -> None:
    assert [epochs_for(n) for n in (10, 1437, 60_000, 10**7)] == [50, 20, 5, 5]
    assert Recipe().resolve(1437).epochs == 20
    assert QUICK.resolve(1437) is QUICK


def test_schedules() -> None:
    assert [lr_factor("one-cycle", d) for d in (0.0, 0.15, 0.3, 1.0)] == pytest.approx([0, 0.5, 1, 0])
    assert [lr_factor("cosine", d) for d in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])
    assert lr_factor("constant", 0.9) == 1


def test_augmentation_shifts_each_image_over_black_and_mirrors_some() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(400, 2, 16, 16)
    x[:, 0, 8, 5], x[:, 1, 8, 6] = 1.0, 0.5
    assert augment(x, "none", generator=generator) is x
    for how, columns in [("crop", set(range(3, 8))), ("crop-flip", set(range(3, 8)) | set(range(8, 13)))]:
        moved = augment(x, how, generator=generator)
        assert moved.shape == x.shape
        spots = moved[:, 0].nonzero()
        assert len(spots) == 400
        assert set(spots[:, 1].tolist()) == set(range(6, 11))
        assert set(spots[:, 2].tolist()) == columns
        other = moved[:, 1].nonzero()
        assert torch.equal(other[:, 1], spots[:, 1]), "channels of one image moved apart"
        assert ((other[:, 2] - spots[:, 2]).abs() == 1).all()


@dataclass(frozen=True)
class Noisy(TrainingDefense):
    """Learns from images that `perturb` made."""

    name = "noisy"
    eps: float = 0.1

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        options = {"steps": 2}
        return inner(
            network, trainer.perturb(network, x, y, attack="pgd", norm="linf", eps=self.eps, options=options), y
        )


def test_a_defense_is_handed_the_attack_with_a_seed_of_its_own_each_batch() -> None:
    calls: list[dict[str, Any]] = []

    def perturb(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        calls.append(options)
        return x

    for seed in (0, 0, 1):
        trainer = Trainer(Recipe(epochs=1, batch_size=16, seed=seed), defenses=[Noisy()], perturb=perturb)
        Noisy().fit(net(), bars(), trainer)
    assert calls[0].items() >= {"attack": "pgd", "norm": "linf", "eps": 0.1, "attack_options": {"steps": 2}}.items()
    seeds = [call["seed"] for call in calls]
    assert seeds[:6] == seeds[6:12]
    assert len(set(seeds)) == 12


def test_a_defense_trains_with_a_real_attack_and_repeats_itself() -> None:
    hashes = [
        state_sha256(train_model(net(), bars(), recipe=Recipe(epochs=2, batch_size=16), defenses=[Noisy(eps=eps)]))
        for eps in (0.1, 0.1, 0.2)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_defenses_fit_in_order_and_may_return_another_network() -> None:
    order: list[str] = []

    @dataclass(frozen=True)
    class Wraps(TrainingDefense):
        name: str  # type: ignore[misc]

        def fit(self, model: nn.Module, data: Any, trainer: Trainer) -> nn.Module:
            order.append(f"{self.name} on {type(model).__name__}")
            return nn.ModuleList([model]).train()

    trained = train_model(net(), bars(), recipe=QUICK, defenses=[Wraps("a"), Wraps("b")])
    assert order == ["a on Sequential", "b on ModuleList"]
    assert not trained.training


@pytest.mark.parametrize("fault", ["raises", "returns nothing"])
def test_a_defense_that_fails(fault: str) -> None:
    @dataclass(frozen=True)
    class Broken(TrainingDefense):
        name = "broken"

        def fit(self, model: nn.Module, data: Any, trainer: Trainer) -> Any:
            if fault == "raises":
                raise ZeroDivisionError("eps")

    error = PluginError if fault == "raises" else UserError
    with pytest.raises(error, match=r"broken\.fit"):
        train_model(net(), bars(), recipe=QUICK, defenses=[Broken()])


def test_what_decides_a_training_is_described() -> None:
    import json

    said = describe(bars(), Recipe(), [Noisy(eps=0.2)])
    assert json.loads(json.dumps(said)) == said
    assert said["dataset"]["fingerprint"] == bars().fingerprint
    assert said["epochs"] == 50
    assert said["defenses"][0]["options"] == {"eps": 0.2}
    assert said["defenses"][0]["source_sha256"] == sha256_file(Path(__file__))
    assert said["defenses"][0]["plugins"] == {}


def test_a_defense_made_from_another_is_known_by_both_files() -> None:
    class Mine(FastAT):
        name = "mine"

    (said,) = describe(bars(), Recipe(), [Mine(eps=0.1)])["defenses"]
    assert said["source_sha256"] == sha256_file(Path(__file__))
    assert said["plugins"] == {"FastAT": sha256_file(Path(fast_at.__file__))}


def test_processes_are_among_what_decides_where_they_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = describe(bars(), Recipe()), describe(bars(), Recipe(), [Noisy()])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert describe(bars(), Recipe()) == alone[0]
    assert describe(bars(), Recipe(), [Noisy()]) == {**alone[1], "processes": 2}
    assert describe(bars(), Recipe(), unlabeled=bars())["processes"] == 2


Load = Callable[..., LoadedModel]


@pytest.fixture
def trainings() -> list[str]:
    return []


@pytest.fixture
def load(trainings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load_model` of a network for the bars, with a cache of its own, counting its trainings."""
    monkeypatch.setenv("RBL_CACHE", str(tmp_path / "cache"))

    def run(
        spec: str = "small-cnn", *, recipe: Recipe = QUICK, data: ArrayDataset | None = None, **more: Any
    ) -> LoadedModel:
        data = data or bars()

        def train(module: nn.Module, *, checkpoint: Path, history: History) -> nn.Module:
            trainings.append(spec)
            return train_model(module, data, recipe=recipe, checkpoint=checkpoint, history=history)

        options: dict[str, Any] = {"train": train, "recipe": describe(data, recipe), **more}
        return load_model(spec, n_classes=3, shape=SHAPE, **options)

    return run


def cached() -> list[Path]:
    return sorted((cache_dir() / "models").iterdir())


def test_a_network_is_trained_once(load: Load, trainings: list[str]) -> None:
    first, second = load(), load()
    assert trainings == ["small-cnn"]
    assert first.sha256 == second.sha256
    assert second.weights == "trained"
    assert second.recipe == first.recipe == describe(bars(), QUICK)
    assert not second.module.training
    assert len(cached()) == 1
    assert torch.equal(first.module(bars().array), second.module(bars().array))


def test_another_recipe_data_set_or_network_is_trained_anew(load: Load, trainings: list[str]) -> None:
    load()
    load(recipe=Recipe(epochs=3, batch_size=16, seed=1))
    load(data=bars(seed=3))
    load("mlp")
    assert trainings == ["small-cnn"] * 3 + ["mlp"]
    assert len(cached()) == 4


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign"])
def test_a_corrupt_cached_network_is_named_kept_and_trained_again(
    load: Load, trainings: list[str], damage: str
) -> None:
    first = load()
    (path,) = cached()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 4
    damaged = {"truncate": bytes(content[:300]), "empty": b"", "foreign": b"not ours", "flip": bytes(content)}[damage]
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match=f"{path.name} is .*trained again"):
        second = load()
    assert trainings == ["small-cnn"] * 2
    assert second.sha256 == first.sha256
    kept = [file for file in cached() if file != path]
    assert [file.read_bytes() for file in kept] == [damaged]
    load()
    assert len(trainings) == 2


def test_an_interrupted_training_keeps_nothing(load: Load) -> None:
    def interrupted(module: nn.Module, **_: Any) -> nn.Module:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(train=interrupted)
    assert not (cache_dir() / "models").exists()


def test_a_network_that_the_name_does_not_build_is_not_cached(load: Load) -> None:
    loaded = load(train=lambda module, **_: nn.Sequential(nn.AvgPool2d(1), module))
    assert loaded.module(bars().array).shape == (90, 3)
    assert not (cache_dir() / "models").exists()


def test_untrained_without_a_trainer_names_the_way_out() -> None:
    with pytest.raises(UserError, match=r"^--weights: mlp comes untrained; give a file") as caught:
        load_model("mlp", n_classes=3, shape=SHAPE)
    assert "\n" not in str(caught.value)


def test_a_factory_is_trained_only_when_told_to(load: Load, trainings: list[str], tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n")
    assert load(f"{file}:make").weights == "factory"
    assert trainings == []
    first, second = load(f"{file}:make", retrain=True), load(f"{file}:make", retrain=True)
    assert (first.weights, len(trainings)) == ("trained", 1)
    assert first.sha256 == second.sha256 != load(f"{file}:make").sha256
    assert first.recipe is not None
    assert first.recipe["start"] == {"weights": "factory", "sha256": load(f"{file}:make").sha256}


def test_the_cache_is_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBL_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.delenv("RBL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir().name == "robustbench-lite"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    write_whole(path, lambda temporary: temporary.write_bytes(b"one"))

    def full(temporary: Path) -> None:
        temporary.write_bytes(b"tw")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"^cannot write .*file\.bin: No space left on device; ") as caught:
        write_whole(path, full)
    assert "\n" not in str(caught.value)

    def interrupted(temporary: Path) -> None:
        temporary.write_bytes(b"th")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted)
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]
    assert path.read_bytes() == b"one"
    assert sha256_file(path) == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.bin", tmp_path / "file" / "deep" / "x.bin"):
        with pytest.raises(UserError, match=r"^cannot write .*x\.bin: .*; free space there or name another folder$"):
            write_whole(path, lambda temporary: temporary.write_bytes(b"x"))
