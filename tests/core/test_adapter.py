"""Networks of every kind, and every kind of output: evaluated with the right numbers, or refused in one line."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import robustbench_lite as rbl
from robustbench_lite.adapter import Adapted, adapt
from robustbench_lite.data import from_arrays
from robustbench_lite.errors import RblError, UserError
from robustbench_lite.models.identity import state_sha256

X = torch.rand((8, 1, 8, 8), generator=torch.Generator().manual_seed(1))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    with torch.no_grad():
        net[3].bias -= net(X).mean(0)
    return net


LABELS = plain()(X).argmax(1)


class Around(nn.Module):
    """A network whose answer is made into another."""

    def __init__(self, answer: Callable[[Tensor], Any], network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network or plain()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.network(x))


def result_of(model: Any, y: Tensor = LABELS, **options: Any) -> rbl.Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rbl.evaluate(model, X, y, eps=0.02, checks=False, **{"attack": "fgsm", **options})


def refused(model: Any, y: Tensor = LABELS, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        result_of(model, y, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- kinds of modules ---------------------------------------------------------------------------------


def exported(n: int | None = None) -> nn.Module:
    shapes = ({0: torch.export.Dim("n")},) if n is None else None
    return torch.export.export(plain(), (X[: n or 2],), dynamic_shapes=shapes).module()


def weight_normed() -> nn.Module:
    net = plain()
    nn.utils.weight_norm(net[3])
    return net


def parametrised(norm: Callable[[nn.Module], object]) -> nn.Module:
    net = plain()
    norm(net[3])
    with torch.no_grad():
        net(X)
    return net.eval()


class OnlyEight(nn.Module):
    """A reshape to the number of images that it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.network = plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.reshape(8, 1, 8, 8))  # type: ignore[no-any-return]


class NoEval(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = plain()

    def train(self, mode: bool = True) -> NoEval:
        raise RuntimeError("this network is for inference")

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training and not self.network.training
        return self.network(x)  # type: ignore[no-any-return]


def scripted() -> Any:
    return torch.jit.script(plain())


KINDS: dict[str, Callable[[], Any]] = {
    "exported": exported,
    "exported for 2": lambda: exported(2),
    "exported for 8": lambda: exported(8),
    "scripted": scripted,
    "frozen": lambda: torch.jit.freeze(scripted()),
    "traced": lambda: torch.jit.trace(plain(), X[:1]),  # type: ignore[no-untyped-call]
    "reshaped": OnlyEight,
    "weight_norm, old": weight_normed,
    "weight_norm": lambda: parametrised(parametrizations.weight_norm),
    "data parallel": lambda: nn.DataParallel(plain()),
    "compiled": lambda: torch.compile(plain(), backend="eager"),
    "no eval": NoEval,
    "float64": lambda: plain().double(),
    "squeezed": lambda: Around(torch.squeeze),
    "strided": lambda: Around(lambda z: torch.stack([z, z], 2)[..., 0]),
    "in float64 at the end": lambda: Around(lambda z: z.double()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_numbers_of_the_plain_network(kind: str) -> None:
    model, want = KINDS[kind](), result_of(plain())
    found = result_of(model)
    assert found.clean_accuracy == want.clean_accuracy == 1
    assert found.robust_accuracy == want.robust_accuracy < 1
    assert torch.equal(found.column("adversarial_prediction"), want.column("adversarial_prediction"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_computed_in_float32(dtype: torch.dtype) -> None:
    model = plain().to(dtype)
    want = result_of(plain().to(dtype).float())
    assert result_of(model).robust_accuracy == want.robust_accuracy
    assert model[0].weight.dtype == dtype


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_spectral_norm(norm: Any) -> None:
    assert 0 <= result_of(parametrised(norm)).robust_accuracy <= 1


@pytest.mark.parametrize("kind", ["weight_norm, old", "no eval", "float64", "exported"])
@pytest.mark.filterwarnings("ignore")
def test_lower_precision_of_every_kind(kind: str) -> None:
    assert result_of(KINDS[kind](), precision="bf16", attack="pgd").clean_accuracy == 1


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = plain()[0], plain()[3]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.fc(x.view(x.size(0), -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_view_in_lower_precision(precision: str) -> None:
    found = result_of(Viewed(), precision=precision, attack="pgd")
    assert found.clean_accuracy == 1
    assert found.robust_accuracy == result_of(plain(), precision=precision, attack="pgd").robust_accuracy


def test_a_network_that_cannot_be_lowered_is_one_line() -> None:
    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain()

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 images only")
            return self.network(x)  # type: ignore[no-any-return]

    said = refused(Exact(), precision="bf16", attack="pgd")
    assert said.startswith("precision: the network cannot be computed in bf16 (float32 images only)")


@pytest.mark.filterwarnings("ignore:clean accuracy")
def test_lazy_layers_are_given_their_shapes() -> None:
    with pytest.warns(UserWarning, match="lazy layers got their shapes"):
        found = rbl.evaluate(
            nn.Sequential(nn.Flatten(), nn.LazyLinear(4)).eval(), X, LABELS, attack="fgsm", checks=False
        )
    assert 0 <= found.robust_accuracy <= 1


def test_a_network_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    assert "meta device" in refused(model)


@pytest.mark.parametrize("model", [plain().forward, functools.partial(plain()), 3])
def test_what_is_no_module_is_refused(model: Any) -> None:
    assert refused(model).startswith("model: expected a torch.nn.Module, got ")


def test_a_forward_that_needs_more_is_refused() -> None:
    class Conditional(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.flatten(1) * y

    said = refused(Conditional())
    assert "TypeError" in said and "'y'" in said


def test_an_answer_cut_off_from_its_input_is_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = rbl.evaluate(Around(lambda z: z.detach()), X, LABELS, attack="fgsm")
    assert found.summary()["verdict"].startswith("unreliable: the gradient is zero for all 8 images")
    assert any("cuts its answer off from its input" in text for text in found.warnings)


def test_a_backward_that_raises_is_the_network_s_own() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("no gradient here")

    assert "raised RuntimeError: no gradient here" in refused(Around(Broken.apply))


@pytest.mark.filterwarnings("ignore")
def test_networks_are_left_as_they_were_found() -> None:
    for model in (plain().train(), exported(), torch.jit.freeze(scripted()), NoEval()):
        modes = [getattr(part, "training", None) for part in model.modules()]
        state = state_sha256(model)
        result_of(model)
        assert [getattr(part, "training", None) for part in model.modules()] == modes
        assert state_sha256(model) == state
        assert all(p.requires_grad for p in model.parameters())


def quantized(net: nn.Module) -> nn.Module:
    quantize: Any = torch.ao.quantization.quantize_dynamic
    made: nn.Module = quantize(net, {nn.Linear})
    return made


@pytest.mark.filterwarnings("ignore")
def test_networks_without_parameters_are_told_apart() -> None:
    other = plain()
    with torch.no_grad():
        other.get_parameter("3.bias").add_(1)
    hashes = {state_sha256(torch.jit.freeze(torch.jit.script(net))) for net in (plain(), other)}
    assert len(hashes) == 2
    dynamic = {state_sha256(quantized(net)) for net in (plain(), other)}
    assert len(dynamic) == 2


@pytest.mark.filterwarnings("ignore")
def test_bounds_of_torchscript_are_refused_in_one_line() -> None:
    for model in (scripted(), torch.jit.freeze(scripted()), exported()):
        with pytest.raises(UserError, match="cannot bound"):
            rbl.certify(model, X, LABELS, method="interval", eps=0.01)


def test_bounds_of_a_tuple_are_those_of_its_logits() -> None:
    want = rbl.certify(plain(), X, LABELS, method="interval", eps=0.001)
    with pytest.warns(UserWarning, match="is taken for the logits"):
        found = rbl.certify(Around(lambda z: {"logits": z}), X, LABELS, method="interval", eps=0.001)
    assert found.certified_accuracy == want.certified_accuracy > 0


# -- kinds of outputs ---------------------------------------------------------------------------------


class Output(OrderedDict):  # type: ignore[type-arg]
    pass


@dataclasses.dataclass
class Answer:
    features: Tensor
    logits: Tensor


class Plain:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


Aux = namedtuple("Aux", "aux logits")
OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "tuple": (lambda z: (z, z * 0), "[0]"),
    "loss first": (lambda z: (z.sum(), z), "[1]"),
    "list": (lambda z: [z, z.repeat(1, 9)], "[0]"),
    "dict": (lambda z: {"aux": z * 0, "logits": z}, "['logits']"),
    "out": (lambda z: OrderedDict(aux=z * 0, out=z), "['out']"),
    "an only entry": (lambda z: {"mine": z}, "['mine']"),
    "ModelOutput": (lambda z: Output(loss=z.sum(), logits=z), "['logits']"),
    "dataclass": (lambda z: Answer(z * 0, z), ".logits"),
    "object": (Plain, ".logits"),
    "slots": (Slotted, ".logits"),
    "namedtuple": (lambda z: Aux(z * 0, z), ".logits"),
    "nested": (lambda z: ({"logits": z}, z.sum()), "[0]['logits']"),
    "axes of one": (lambda z: z[:, :, None, None], "trailing axes"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_logits_are_found_in_every_output(name: str) -> None:
    answer, where = OUTPUTS[name]
    with pytest.warns(UserWarning, match="is taken for the logits") as said:
        found = rbl.evaluate(Around(answer).eval(), X, LABELS, attack="fgsm", eps=0.02, checks=False)
    assert sum(where in str(w.message) for w in said) == 1
    assert found.robust_accuracy == result_of(plain()).robust_accuracy
    assert where in str(found.run.specification.model.preprocessing)


@pytest.mark.parametrize(
    "answer",
    [
        lambda z: (z.repeat(1, 9), z),
        lambda z: {"a": z, "b": z * 0},
        lambda z: {"boxes": z.sum()},
        lambda z: None,
        lambda z: "cat",
        lambda z: (),
    ],
)
def test_an_output_with_nothing_to_choose_by_is_described(answer: Callable[[Tensor], Any]) -> None:
    assert "return the logits alone" in refused(Around(answer))


@pytest.mark.parametrize("answer", [lambda z: z.argmax(1), lambda z: torch.complex(z, z)])
def test_what_is_no_floating_point_is_refused(answer: Callable[[Tensor], Any]) -> None:
    assert "expected logits in floating point, got " in refused(Around(answer))


def test_with_the_number_of_classes_features_are_no_logits() -> None:
    ready = adapt(Around(lambda z: (z.repeat(1, 9), z)), X, n_classes=4)
    assert torch.equal(ready.module(X), plain()(X))


def binary(end: Callable[[Tensor], Tensor] = lambda z: z) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with torch.no_grad():
        net[1].bias -= net(X).median()
    return Around(end, net)


BINARY = (binary()(X)[:, 0] > 0).long()


@pytest.mark.parametrize("end", [lambda z: z, lambda z: z[:, 0], torch.sigmoid, lambda z: (z.sigmoid()[:, 0], z)])
def test_a_binary_head_is_two_classes(end: Callable[[Tensor], Any]) -> None:
    found = result_of(binary(end), BINARY, binary=True)
    assert found.clean_accuracy == 1
    assert found.robust_accuracy == result_of(binary(), BINARY, binary=True).robust_accuracy < 1


@pytest.mark.parametrize("end", [lambda z: z, lambda z: z[:, 0], lambda z: {"logits": z}])
def test_a_binary_head_that_nobody_states_is_asked_for(end: Callable[[Tensor], Any]) -> None:
    assert "give binary=True" in refused(binary(end), BINARY)


def test_binary_where_it_does_not_fit() -> None:
    assert "leave it out" in refused(plain(), binary=True)
    with pytest.raises(UserError, match="a binary head tells two classes apart, the data have 10"):
        adapt(binary(), X, n_classes=10, binary=True)


def test_the_state_of_an_adapted_network_has_its_own_names() -> None:
    network = plain()
    adapted = Adapted(network, binary=None, batch=2)
    assert list(adapted.state_dict()) == list(network.state_dict())
    around = nn.Sequential(adapted)
    zero = plain()
    with torch.no_grad():
        zero.get_parameter("3.weight").zero_()
    other = nn.Sequential(Adapted(zero, batch=2))
    other.load_state_dict(around.state_dict())
    assert torch.equal(other(X), around(X))


# -- training -----------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.Sequential(nn.Flatten(), nn.Linear(64, 4)) for _ in range(2))
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.a(x), self.b(x)) if self.training else self.a(x)


@pytest.mark.parametrize("answer", [lambda a, b: (a, b), lambda a, b: {"aux": b, "logits": a}, lambda a, b: Aux(b, a)])
def test_further_heads_while_training_are_left_out(answer: Callable[[Tensor, Tensor], Any]) -> None:
    data = from_arrays(X, LABELS, name="x", split="train", classes=4)
    recipe = rbl.Recipe(epochs=2, batch_size=4, validation=4)
    want = rbl.train_model(TwoHeads(lambda a, b: a), data, recipe=recipe)
    found = rbl.train_model(TwoHeads(answer), data, recipe=recipe)
    assert state_sha256(found) == state_sha256(want)
    assert not found._forward_hooks


def test_a_binary_head_is_trained() -> None:
    model = binary()
    before = model.get_parameter("network.1.weight").detach().clone()
    trained = rbl.train_model(
        model, from_arrays(X, BINARY, name="x", split="train", classes=2), recipe=rbl.Recipe(epochs=1), binary=True
    )
    assert trained is model
    assert not torch.equal(model.get_parameter("network.1.weight"), before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [scripted, exported])
def test_what_cannot_be_trained_is_one_line(make: Callable[[], nn.Module]) -> None:
    data = from_arrays(X, LABELS, name="x", split="train", classes=4)
    with pytest.raises(UserError, match="give the module that it was made from"):
        rbl.train_model(make(), data, recipe=rbl.Recipe(epochs=1))


def test_a_network_that_raises_in_training_is_one_line() -> None:
    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain()

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise KeyError("teacher")
            return self.network(x)  # type: ignore[no-any-return]

    data = from_arrays(X, LABELS, name="x", split="train", classes=4)
    with pytest.raises(RblError, match="a step of its training raised KeyError: 'teacher'"):
        rbl.train_model(Raises(), data, recipe=rbl.Recipe(epochs=1))


def test_networks_of_a_transfer_matrix() -> None:
    with pytest.warns(UserWarning, match="is taken for the logits"):
        found = rbl.transfer_matrix({"a": plain(), "b": Around(lambda z: (z,))}, X, LABELS, attack="fgsm", eps=0.05)
    shares = found.matrix.loc[["a", "b"]].to_numpy()
    assert shares.shape == (2, 2) and len({*shares.flat}) == 1
