"""What is handed to networks, attacks and defenses is a copy: nothing that is kept can be written by them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Batch, State
from robustbench_lite.data.checks import from_arrays
from robustbench_lite.defense import wrap_all
from robustbench_lite.errors import UserError
from robustbench_lite.examples import save_examples
from robustbench_lite.features.construction import Workshop
from robustbench_lite.features.usefulness import usefulness
from robustbench_lite.foreign import ask, isolated
from robustbench_lite.losses import margin
from robustbench_lite.network import frozen
from robustbench_lite.penultimate import Penultimate
from robustbench_lite.print_photo import destruction_rate
from robustbench_lite.recipe import Recipe
from robustbench_lite.registry import load
from robustbench_lite.reverify import reverify
from robustbench_lite.rows import copied
from robustbench_lite.training import train_model

from .nets import Asks, images, labels_of, mlp
from .writers import MAKERS, WRITES, Apart, Case, KeptInput, Writer, same

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MEASURED = ("success", "prediction", "margin", "adversarial_prediction", "adversarial_margin", "forwards", "backwards")


SOME = ("x.data =", "x.sub_", "hook", "kept output")


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        *(("pgd", name) for name in MAKERS),
        *(("square", name) for name in ("x.data =", "x.numpy()", "spoilt output")),
        *(("deepfool", name) for name in ("x.sub_", "backward", "kept gradient")),
    ],
)
def test_a_network_that_writes_is_measured_as_one_that_copies(attack: str, name: str) -> None:
    settings: dict[str, Any] = {"attack": attack}
    if attack == "square":
        settings["attack_options"] = {"steps": 20}
    if attack == "deepfool":
        settings |= {"norm": "l2", "eps": 0.5}
    apart = Apart(MAKERS[name]())
    case = Case.of(apart)
    before, labels = case.x.clone(), case.y.clone()
    expected = case.run(apart, **settings)
    found = case.run(MAKERS[name]().eval(), **settings)
    assert torch.equal(case.x, before) and torch.equal(case.y, labels) and not case.x.requires_grad
    for column in MEASURED:
        assert torch.equal(found.column(column), expected.column(column)), column
    assert expected.clean_accuracy == 1.0
    assert found.adversarial is not None and expected.adversarial is not None
    assert torch.equal(found.adversarial, expected.adversarial)


@pytest.mark.parametrize("name", MAKERS)
def test_the_images_of_a_result_are_those_that_were_judged(name: str) -> None:
    apart = Apart(MAKERS[name]())
    case = Case.of(apart)
    found = case.run(MAKERS[name]().eval(), attack="fgsm", eps=0.1)
    assert found.adversarial is not None
    assert float((found.adversarial - case.x).abs().max()) <= 0.1
    assert float(found.adversarial.min()) >= 0 and float(found.adversarial.max()) <= 1
    right = labels_of(apart, found.adversarial.clone()) == case.y
    assert float(right.double().mean()) == found.robust_accuracy
    assert found.robust_accuracy < 1


@pytest.mark.parametrize("name", SOME)
def test_verdict_and_warnings_are_those_of_one_that_copies(name: str) -> None:
    apart = Apart(MAKERS[name]())
    case = Case.of(apart, 12)
    expected, found = (case.run(net, checks=True) for net in (apart, MAKERS[name]().eval()))
    assert found.run.specification.verdict == expected.run.specification.verdict
    assert found.run.specification.warnings == expected.run.specification.warnings
    assert not any("between equal calls" in text for text in found.run.specification.warnings)


class Counter(nn.Module):
    """Counts its calls in a buffer, and answers by it."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x) * (1 + self.calls)  # type: ignore[no-any-return]


class Statistics(nn.Module):
    """Batch normalisation that learns its statistics in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        return self.net(self.norm(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("net", [Counter(), nn.Sequential(Counter())])
def test_a_network_that_writes_into_its_own_buffers_is_found_out(net: nn.Module) -> None:
    case = Case.of(mlp(), 12)
    found = case.run(net.eval(), checks=True)
    assert "the model's answers change between equal calls" in found.run.specification.verdict


def test_statistics_that_are_learned_while_evaluated_are_found_out() -> None:
    net = Statistics().eval()
    case = Case.of(net, 16)
    assert case.run(net, checks=True).run.specification.verdict.startswith("unreliable")


def test_arrays_of_numpy_are_left_as_they_were(tmp_path: Path) -> None:
    apart = Apart(Writer(WRITES["x.data.op_"]))
    case = Case.of(apart)
    x, y = case.x.numpy().copy(), case.y.numpy().copy()
    np.savez(tmp_path / "images.npz", images=x, labels=y)
    found = rbl.evaluate(Writer(WRITES["x.data.op_"]).eval(), x, y, eps=0.05, checks=False)
    assert np.array_equal(x, case.x.numpy()) and np.array_equal(y, case.y.numpy())
    mapped = np.memmap(tmp_path / "images.raw", x.dtype, "w+", shape=x.shape)
    mapped[...] = x
    again = rbl.evaluate(Writer(WRITES["x.data.op_"]).eval(), torch.from_numpy(mapped), case.y, eps=0.05, checks=False)
    assert np.array_equal(mapped, x)
    assert found.robust_accuracy == again.robust_accuracy == case.run(apart).robust_accuracy


# -- other commands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
def test_a_transfer_matrix_with_a_network_that_writes(name: str) -> None:
    apart, other = Apart(MAKERS[name]()), mlp(seed=2)
    case = Case.of(apart)
    before = case.x.clone()
    expected = rbl.transfer_matrix({"one": apart, "other": other}, case.x, case.y, eps=0.05)
    found = rbl.transfer_matrix({"one": MAKERS[name]().eval(), "other": other}, case.x, case.y, eps=0.05)
    assert torch.equal(case.x, before)
    assert found.table.equals(expected.table)


@pytest.mark.parametrize("ensemble", ["logits", "loss"])
def test_surrogates_that_write(ensemble: str) -> None:
    case = Case.of(mlp(seed=3))
    makers = [MAKERS[name] for name in ("x.data =", "kept output")]
    found, expected = (
        case.run(
            mlp(seed=3),
            attack="transfer:pgd",
            attack_options={"steps": 3, "ensemble": ensemble},
            surrogates=[wrap(make()) for make in makers],
        )
        for wrap in (lambda net: net.eval(), Apart)
    )
    assert found.adversarial is not None and expected.adversarial is not None
    assert torch.equal(found.adversarial, expected.adversarial)


@pytest.mark.parametrize("name", ["x.data =", "x.numpy()", "x.sub_", "kept output", "hook"])
def test_votes_over_noisy_copies_of_a_network_that_writes(name: str) -> None:
    apart = Apart(MAKERS[name]())
    case = Case.of(apart, 4)
    before = case.x.clone()
    settings: dict[str, Any] = {
        "method": "smoothing",
        "method_options": {"n0": 20, "n": 200},
        "defenses": [load("defenses", "randomized-smoothing", argument="defense")(sigma=0.1)],
    }
    expected = rbl.certify(apart, case.x, case.y, **settings)
    found = rbl.certify(MAKERS[name]().eval(), case.x, case.y, **settings)
    assert torch.equal(case.x, before)
    columns = ["prediction", "radius"]
    assert found.samples[columns].equals(expected.samples[columns])


@pytest.mark.parametrize("name", ["x.data =", "x.sub_", "no_grad", "pre-hook x.sub_", "hook", "tensor hook"])
@pytest.mark.parametrize("method", ["interval", "crown"])
def test_bounds_of_a_network_that_writes_are_refused(name: str, method: str) -> None:
    case = Case.of(Apart(MAKERS[name]()), 4)
    before = case.x.clone()
    with pytest.raises(UserError, match="--model: cannot bound"):
        rbl.certify(MAKERS[name]().eval(), case.x, case.y, method=method, eps=0.001)
    assert torch.equal(case.x, before)


def test_bounds_of_layers_that_work_in_place() -> None:
    case = Case.of(mlp(), 6)
    before = case.x.clone()
    plain, in_place = (nn.Sequential(nn.ReLU(inplace=flag), mlp()).eval() for flag in (False, True))
    expected = rbl.certify(plain, case.x, case.y, method="crown", eps=0.01)
    found = rbl.certify(in_place, case.x, case.y, method="crown", eps=0.01)
    assert torch.equal(case.x, before)
    assert found.samples["bound"].equals(expected.samples["bound"])


@pytest.mark.parametrize("name", SOME)
def test_images_made_and_transformed_for_a_network_that_writes(name: str) -> None:
    apart = Apart(MAKERS[name]())
    case = Case.of(apart)
    before = case.x.clone()
    expected = rbl.perturb(apart, case.x, case.y, eps=0.1, attack_options={"steps": 3})
    found = rbl.perturb(MAKERS[name]().eval(), case.x, case.y, eps=0.1, attack_options={"steps": 3})
    assert torch.equal(found, expected) and torch.equal(case.x, before)
    rates = [destruction_rate(net, case.x, found, case.y) for net in (apart, MAKERS[name]().eval())]
    assert rates[0].equals(rates[1]) and torch.equal(case.x, before) and torch.equal(found, expected)


def test_features_of_a_network_that_writes() -> None:
    x = images(30, low=0.2, high=0.8)
    data = from_arrays(x.clone(), torch.arange(30) % 4, classes=4)
    rows = []
    for net in (Apart(Writer(WRITES["x.data.op_"])).eval(), Writer(WRITES["x.data.op_"]).eval()):
        with frozen(net):
            shop = Workshop(data, net)
            rows.append(usefulness(shop, data, data, eps=0.3, attack_options={"steps": 2}))
    assert rows[0].equals(rows[1])
    assert torch.equal(data.array, x)


class Reused(nn.Module):
    """Overwrites the features behind its last layer once they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(36, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x.flatten(1))
        logits = self.last(features)
        features.data.zero_()
        return logits  # type: ignore[no-any-return]


def test_features_that_are_overwritten_are_read_before() -> None:
    net, x = Reused(), images(3)
    found = Penultimate(net, x)(x)
    assert torch.equal(found, net.first(x.flatten(1)))


@pytest.mark.parametrize("name", ["x.numpy()", "spoilt output"])
def test_a_run_verified_with_a_network_that_writes(name: str, tmp_path: Path) -> None:
    net = MAKERS[name]().eval()
    case = Case.of(Apart(MAKERS[name]()))
    found = case.run(net, leaderboard=tmp_path)
    save_examples(tmp_path / "e.npz", found, case.x)
    checked = reverify(found.run, tmp_path / "e.npz", net, draws=3)
    assert checked.faults == () and checked.clean == checked.adversarial == len(case.x)


# -- training ---------------------------------------------------------------------------------------------


def learned(net: nn.Module, *defenses: Any, **recipe: Any) -> dict[str, Tensor]:
    x = images(40, low=0.2, high=0.8)
    data = from_arrays(x.clone(), torch.arange(40) % 4, classes=4)
    settings = Recipe(**{"epochs": 1, "batch_size": 8, "augment": "none", **recipe})
    state = train_model(net, data, recipe=settings, defenses=defenses).state_dict()
    assert torch.equal(data.array, x)
    return {key.replace("net.", ""): value for key, value in state.items()}


@pytest.mark.parametrize("name", ["x.data.op_", "x.sub_", "kept output"])
@pytest.mark.parametrize("defense", ["", "trades", "mart", "vat", "free-at", "awp", "input-gradient"])
def test_training_a_network_that_writes(name: str, defense: str) -> None:
    if name == "kept output":  # a buffer is no output to train
        net: Any = KeptInput
    else:
        net = MAKERS[name]
    made = [load("defenses", defense, argument="defense")()] if defense else []
    expected = learned(Apart(net(same) if net is KeptInput else net()), *made)
    found = learned(net(same) if net is KeptInput else net(), *made)
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


def test_validation_of_a_network_that_writes() -> None:
    recipe = {"validation": 10, "epochs": 2}
    made = [load("defenses", "adversarial-training", argument="defense")(attack_options="steps=2")]
    expected = learned(Apart(Writer(WRITES["x.data.op_"])), *made, **recipe)
    found = learned(Writer(WRITES["x.data.op_"]), *made, **recipe)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@dataclass(frozen=True)
class Careless(rbl.TrainingDefense):
    """Writes into its batch, before or after the loss behind it."""

    name, summary, source = "careless", "", ""
    before: bool = False

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Any, trainer: Any) -> Tensor:
        value: Tensor = inner(network, x, y)
        x.data.zero_()
        y.data.zero_()
        return value


@dataclass(frozen=True)
class Twice(rbl.TrainingDefense):
    """Uses its batch twice, with a loss behind it that may write."""

    name, summary, source = "twice", "", ""

    @property
    def passes(self) -> int:
        return 2

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Any, trainer: Any) -> Tensor:
        return inner(network, x, y) + inner(network, x, y)  # type: ignore[no-any-return]


def test_training_defenses_that_write_reach_no_other_and_no_later_pass() -> None:
    expected, found = learned(mlp(), Twice()), learned(mlp(), Twice(), Careless())
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_images_that_an_attack_made_are_given_again_as_they_were() -> None:
    class Spoils(Careless):
        def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Any, trainer: Any) -> Tensor:
            made = trainer.perturb(network, x, y, attack="fgsm", norm="linf", eps=0.1)
            seen.append(made.clone())
            value: Tensor = inner(network, made, y)
            made.data.zero_()
            return value

    seen: list[Tensor] = []
    learned(mlp(), load("defenses", "awp", argument="defense")(), Spoils())
    assert all(torch.equal(one, two) for one, two in zip(seen[::2], seen[1::2], strict=True))


# -- defenses in front of a network -----------------------------------------------------------------------


@dataclass(frozen=True)
class Stamps(rbl.InferenceDefense):
    """Writes into the images it is given."""

    name, summary, source = "stamps", "", ""

    def transform(self, x: Tensor) -> Tensor:
        x.data[:, :, 0] = 0.5
        return x


@dataclass(frozen=True)
class Mirrors(rbl.InferenceDefense):
    """Asks the network twice about the same images."""

    name, summary, source = "mirrors", "", ""

    def wrap(self, model: nn.Module) -> nn.Module:
        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, x: Tensor) -> Tensor:
                return self.model(x) + self.model(x)  # type: ignore[no-any-return]

        return Both()


@dataclass(frozen=True)
class Steps(Stamps):
    """The same where a surrogate stands in for the gradient."""

    name = "steps"
    differentiable = False

    def transform(self, x: Tensor) -> Tensor:
        return super().transform(x).mul_(31).round_().div_(31)

    def surrogate(self, x: Tensor) -> Tensor:
        return x.mul_(1.0)


@pytest.mark.parametrize("defense", [Stamps(), Steps()])
def test_a_defense_that_writes_into_its_images(defense: rbl.InferenceDefense) -> None:
    case = Case.of(mlp())
    before = case.x.clone()
    found = case.run(mlp(), defenses=[defense], eps=0.1)
    assert torch.equal(case.x, before)
    assert found.adversarial is not None
    assert float((found.adversarial - case.x).abs().max()) <= 0.1
    shown = wrap_all(mlp(), [defense])
    right = labels_of(shown, found.adversarial.clone()) == case.y
    assert float(right.double().mean()) == found.robust_accuracy < found.clean_accuracy


@pytest.mark.parametrize("name", ["x.data.op_", "x.sub_", "kept output", "spoilt output"])
@pytest.mark.parametrize("spec", ["mirrors", "feature-squeezing", "knn"])
def test_a_defense_in_front_of_a_network_that_writes(spec: str, name: str) -> None:
    defense = Mirrors() if spec == "mirrors" else load("defenses", spec, argument="defense")()
    apart = Apart(MAKERS[name]())
    case = Case.of(apart)
    learn = (images(30, seed=9, low=0.2, high=0.8), torch.arange(30) % 4)
    before = learn[0].clone()
    expected, found = (
        case.run(net, defenses=[defense], fit_data=learn, eps=0.1) for net in (apart, MAKERS[name]().eval())
    )
    assert torch.equal(learn[0], before)
    for column in MEASURED:
        assert torch.equal(found.column(column), expected.column(column)), column


def test_hooks_are_taken_away() -> None:
    net = mlp()
    case = Case.of(net, 6)
    case.run(net, defenses=[Mirrors()])
    learned(net)
    assert not net._forward_pre_hooks and not net._forward_hooks


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_networks_are_isolated_too() -> None:
    net = torch.jit.script(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()))
    x = images(2) - 0.5
    before = x.clone()
    with isolated(net):
        net(x)
    assert torch.equal(x, before)
    net(x)
    assert not torch.equal(x, before)


# -- attacks ----------------------------------------------------------------------------------------------


def _climbs(query: Any, batch: Batch, state: State) -> State:
    answer = query.gradient(state.candidate, margin)
    return State(batch.ball.ascend(state.candidate, answer.gradient, 0.02))


def _climbs_by_autograd(query: Any, batch: Batch, state: State) -> State:
    """As `_climbs` with a loss whose slope is not known in closed form: its gradient is rounded otherwise."""
    answer = query.gradient(state.candidate, lambda logits, y, targets: margin(logits, y, targets))
    return State(batch.ball.ascend(state.candidate, answer.gradient, 0.02))


def _spoils_batch(query: Any, batch: Batch, state: State) -> State:
    after = _climbs(query, batch, state)
    for tensor in (batch.ball.x, batch.ball.eps, batch.ball.lower, batch.y, batch.step, batch.stream.keys):  # type: ignore[attr-defined]
        tensor.data.fill_(1)
    batch.learned["delta"].data.fill_(1)
    return after


def _spoils_logits(query: Any, batch: Batch, state: State) -> State:
    def loss(logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
        value = margin(logits.clone(), y.clone(), targets)  # autograd keeps what it is computed from
        logits.data.zero_()
        y.data.fill_(1)
        return value

    answer = query.gradient(state.candidate, loss)
    after = State(batch.ball.ascend(state.candidate, answer.gradient, 0.02))
    answer.logits.zero_()
    state.candidate.data.zero_()
    return after


def _in_place(query: Any, batch: Batch, state: State) -> State:
    state.candidate.data.copy_(_climbs(query, batch, state).candidate)
    return state


def _given(query: Any, batch: Batch) -> State:
    return State(batch.ball.x)


def planted(step: Any, start: Any = None, **more: Any) -> Any:
    def fit(self: Any, query: Any, batch: Batch) -> dict[str, Tensor]:
        return {"delta": torch.zeros(3)}

    return Asks.make(step, start, length=4, norms=("linf",), **{"fit": fit, **more})


@pytest.mark.parametrize(
    ("step", "start"), [(_spoils_batch, None), (_spoils_batch, _given), (_spoils_logits, None), (_in_place, _given)]
)
def test_an_attack_that_writes_finds_what_one_that_copies_finds(step: Any, start: Any) -> None:
    case = Case.of(mlp())
    before, labels = case.x.clone(), case.y.clone()
    climbs = _climbs_by_autograd if step is _spoils_logits else _climbs
    expected = case.run(mlp(), attack=planted(climbs))
    found = case.run(mlp(), attack=planted(step, start))
    assert torch.equal(case.x, before) and torch.equal(case.y, labels)
    for column in MEASURED:
        assert torch.equal(found.column(column), expected.column(column)), column
    assert found.adversarial is not None and expected.adversarial is not None
    assert torch.equal(found.adversarial, expected.adversarial)
    assert 0 < found.robust_accuracy < 1
    moved = [rbl.perturb(mlp(), case.x, case.y, attack=planted(each), eps=0.1) for each in (climbs, step)]
    assert torch.equal(*moved) and torch.equal(case.x, before)
    matrices = [rbl.transfer_matrix({"a": mlp()}, case.x, case.y, attack=planted(e), eps=0.05) for e in (_climbs, step)]
    assert matrices[0].table.equals(matrices[1].table) and torch.equal(case.x, before)


def test_a_fit_that_writes_into_its_images() -> None:
    def fit(self: Any, query: Any, batch: Batch) -> dict[str, Tensor]:
        batch.ball.x.data.zero_()
        batch.y.data.zero_()
        return {"delta": torch.zeros(3)}

    case, learn = Case.of(mlp()), (images(5), torch.arange(5) % 4)
    before = learn[0].clone()
    found = case.run(mlp(), attack=planted(_climbs, fit=fit), fit_data=learn)
    assert torch.equal(learn[0], before) and torch.equal(learn[1], torch.arange(5) % 4)
    assert found.robust_accuracy == case.run(mlp(), attack=planted(_climbs)).robust_accuracy


def test_a_ball_around_other_images_is_refused() -> None:
    def ball(self: Any, threat: Any, x: Tensor, eps: Any = None) -> Any:
        x.data.zero_()
        return threat.around(x, eps)

    case = Case.of(mlp())
    before = case.x.clone()
    with pytest.raises(UserError, match="attack planted: ball: expected the ball around the images as given"):
        case.run(mlp(), attack=planted(_climbs, ball=ball))
    assert torch.equal(case.x, before)


# -- the function -----------------------------------------------------------------------------------------


def test_ask_copies_what_goes_in_and_what_comes_out() -> None:
    x = images(2)
    out = ask(nn.Identity(), x)
    assert torch.equal(out, x) and out.data_ptr() != x.data_ptr()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ask(Writer(WRITES["x.sub_"]), leaf).sum(), leaf)
    (expected,) = torch.autograd.grad(ask(mlp(seed=1), leaf).sum(), leaf)
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-5)
    assert ask(nn.Identity(), x, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_copies_are_made_inside_what_networks_return() -> None:
    @dataclass
    class Output:
        logits: Tensor
        name: str = "a"

    tensor = images(2)
    for value in ((tensor, 1), [tensor], {"logits": tensor}, Output(tensor), torch.max(tensor, 1)):
        again = copied(value)
        assert type(again) is type(value)
    assert copied(Output(tensor)).logits.data_ptr() != tensor.data_ptr()
    assert copied({"logits": tensor})["logits"].data_ptr() != tensor.data_ptr()
    assert copied(None) is None
