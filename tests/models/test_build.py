"""Names, libraries and factories: what they mean, and that networks follow the data set."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_lite.errors import PluginError, UserError
from robustbench_lite.models import Normalize, build_model, load_model, pretrained_preprocessing, state_sha256

GREY = (1, 32, 32)


def one_line(error: BaseException, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"


@pytest.mark.parametrize("name", ["small-cnn", "mlp"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 9, 14), (5, 7, 4)])
def test_built_ins_take_any_size(name: str, shape: tuple[int, int, int]) -> None:
    module = build_model(name, n_classes=7, shape=shape)
    assert module(torch.rand(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "torchvision:mobilenet_v3_small",
        "torchvision:squeezenet1_1",
        "torchvision:shufflenet_v2_x0_5",
        "timm:vit_tiny_patch16_224",
        "mobilevit_xxs",
    ],
)
def test_channels_and_classes_follow_the_data_set(name: str) -> None:
    channels = 4
    module = build_model(name, n_classes=7, shape=(channels, 32, 32)).eval()
    x = torch.rand(2, channels, 32, 32, requires_grad=True)
    logits = module(x)
    assert logits.shape == (2, 7)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert (gradient.abs().sum((0, 2, 3)) > 0).all(), "a channel is not looked at"


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:vgg11",
        "torchvision:vit_b_32",
        "torchvision:densenet121",
        "torchvision:efficientnet_b0",
        "torchvision:convnext_tiny",
        "torchvision:swin_t",
        "torchvision:googlenet",
        "timm:swin_tiny_patch4_window7_224",
        "timm:convnext_atto",
        "timm:mixer_s32_224",
    ],
)
def test_large_networks_follow_it_too(name: str) -> None:
    from robustbench_lite.models.build import find_source

    with torch.device("meta"):  # shapes alone: nothing is initialised or computed
        source = find_source(name)
        module = source.family.build(source.architecture, n_classes=7, shape=GREY).eval()
        assert module(torch.rand(2, *GREY)).shape == (2, 7)


def numpy_state() -> np.ndarray[Any, Any]:
    state = np.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    return state[1].copy()


def test_same_seed_same_network_and_global_state_untouched() -> None:
    before = torch.get_rng_state(), numpy_state(), random.getstate()
    networks = [build_model("torchvision:squeezenet1_1", n_classes=10, shape=GREY, seed=seed) for seed in (1, 1, 2)]
    hashes = [state_sha256(network) for network in networks]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(numpy_state(), before[1])
    assert random.getstate() == before[2]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnt18", ["--model", "'resnt18'", "resnet18"]),
        ("torchvision:resnt18", ["torchvision:resnet18"]),
        ("timm:resnt18", ["timm:resnet18"]),
        ("smal-cnn", ["small-cnn"]),
        ("qqqqqqqqqq", ["'qqqqqqqqqq'", "torchvision:NAME", "FILE.py:FACTORY"]),
        ("timm", ["timm:NAME"]),
        ("timm:resnet18.nope", ["nope"]),
        ("no_such_file.py:make", ["no such file", "no_such_file.py"]),
        ("torchvision:maxvit_t", ["maxvit_t", "1x32x32", "name another"]),
    ],
)
def test_names_that_do_not_work(spec: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_model(spec, n_classes=10, shape=GREY)
    one_line(caught.value, *words)


def test_images_too_small_for_the_network() -> None:
    with pytest.raises(UserError) as caught:
        build_model("torchvision:squeezenet1_1", n_classes=10, shape=(1, 6, 6))
    one_line(caught.value, "--model", "squeezenet1_1 cannot take images of 1x6x6", "name another network")


FACTORIES = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=3):
        super().__init__(nn.Flatten(), nn.Linear(1024, 10))

def plain():
    return Net().train()

def sized(shape, *, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], n_classes))

def swallows(**options):
    assert not options
    return Net()

def needs(width):
    return Net()

def raises():
    raise KeyError("the weights")

def nothing():
    return None

network = Net()
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(FACTORIES)
    return path


@pytest.mark.parametrize("factory", ["plain", "sized", "swallows", "Net"])
def test_factories(file: Path, factory: str) -> None:
    loaded = load_model(f"{file}:{factory}", n_classes=10, shape=GREY)
    assert loaded.module(torch.rand(2, *GREY)).shape == (2, 10)
    assert not any(module.training for module in loaded.module.modules())
    assert loaded.name == f"net.py:{factory}"
    assert (loaded.weights, loaded.recipe, loaded.preprocessing) == ("factory", None, {})
    assert loaded.sha256 == load_model(f"{file}:{factory}", n_classes=10, shape=GREY).sha256


def test_a_factory_takes_weights_from_a_file(file: Path, tmp_path: Path) -> None:
    weights = {"1.weight": torch.full((10, 1024), 0.5), "1.bias": torch.zeros(10)}
    torch.save(weights, tmp_path / "w.pth")
    loaded = load_model(f"{file}:Net", n_classes=10, shape=GREY, weights=str(tmp_path / "w.pth"))
    assert float(loaded.module(torch.ones(1, *GREY)).detach()[0, 0]) == 512
    assert loaded.weights == "w.pth"


def test_a_factory_of_an_importable_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(file.parent)
    (file.parent / "rbl_test_nets.py").write_text(FACTORIES)
    loaded = load_model("rbl_test_nets:sized", n_classes=4, shape=GREY)
    assert (loaded.name, loaded.module(torch.rand(1, *GREY)).shape) == ("rbl_test_nets:sized", (1, 4))
    monkeypatch.delitem(sys.modules, "rbl_test_nets")


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("needs", ["net.py:needs", "needs width"]),
        ("nothing", ["returned a NoneType", "torch.nn.Module"]),
        ("network", ["is a network", "callable"]),
        ("number", ["is a int", "callable"]),
        ("plan", ["plain"]),
    ],
)
def test_factories_that_do_not_work(file: Path, factory: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_model(f"{file}:{factory}", n_classes=10, shape=GREY)
    one_line(caught.value, *words)


def test_a_factory_that_raises_shows_its_own_traceback(file: Path) -> None:
    with pytest.raises(PluginError) as caught:
        load_model(f"{file}:raises", n_classes=10, shape=GREY)
    one_line(caught.value, "net.py:raises raised KeyError", "the weights")
    assert isinstance(caught.value.__cause__, KeyError)
    assert "net.py" in "".join(caught.value.__notes__)


def test_normalisation_is_inside_and_grey_is_repeated() -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 1.0]
    module = Normalize(nn.Identity(), mean, std, input_size=8)
    grey = torch.full((2, 1, 8, 8), 0.4)
    expected = torch.tensor([0.6, 0.8, 0.1]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    torch.testing.assert_close(module(grey), expected)
    torch.testing.assert_close(module(grey.expand(-1, 3, -1, -1)), expected)
    assert module.preprocessing == {"mean": mean, "std": std, "input_size": 8}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's own cache of downloads, empty, and a network that is not there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        import urllib.error

        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("channels", [1, 3])
def test_pretrained_from_the_hub_s_cache(hub: Path, channels: int) -> None:
    source = build_model("torchvision:squeezenet1_1", n_classes=1000, shape=(3, 64, 64), seed=5).eval()
    torch.save(source.state_dict(), hub / "squeezenet1_1-b8a52dc0.pth")
    loaded = load_model("squeezenet1_1", n_classes=1000, shape=(channels, 64, 64), weights="pretrained")
    x = torch.rand(2, channels, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), source((x.expand(-1, 3, -1, -1) - mean) / std))
    assert loaded.weights == "pretrained"
    assert loaded.preprocessing == pretrained_preprocessing("squeezenet1_1")
    assert loaded.preprocessing["input_size"] == 224


def test_a_pickle_in_the_hub_s_cache_is_not_trusted(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(2, 2), hub / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(UserError) as caught:
        load_model("squeezenet1_1", n_classes=1000, shape=(3, 64, 64), weights="pretrained")
    one_line(caught.value, "--weights pretrained", "could not be had")
    assert capsys.readouterr().out == ""


def test_no_network_is_one_line_and_nothing_on_stdout(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_model("torchvision:squeezenet1_1", n_classes=1000, shape=(3, 64, 64), weights="pretrained")
    one_line(caught.value, "torchvision:squeezenet1_1", "no network in tests", "--weights FILE", str(hub))
    assert capsys.readouterr().out == ""
    assert list(hub.iterdir()) == []


def test_timm_without_a_network_asks_only_its_cache(hub: Path) -> None:
    import huggingface_hub.constants

    with pytest.raises(UserError) as caught:
        load_model("timm:mobilenetv3_small_050", n_classes=1000, shape=(3, 64, 64), weights="pretrained")
    one_line(caught.value, "timm:mobilenetv3_small_050", "could not be had", "--weights FILE")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet18"])
def test_pretrained_classes_must_be_the_data_set_s(spec: str) -> None:
    with pytest.raises(UserError) as caught:
        load_model(spec, n_classes=10, shape=(3, 32, 32), weights="pretrained")
    one_line(caught.value, spec, "1000 classes", "has 10", "leave --weights out")


def test_what_has_no_pretrained_weights_says_so(file: Path) -> None:
    for spec, word in [("small-cnn", "has none"), (f"{file}:Net", "is a factory")]:
        with pytest.raises(UserError) as caught:
            load_model(spec, n_classes=10, shape=GREY, weights="pretrained")
        one_line(caught.value, "--weights pretrained", word)


def test_published_preprocessing_without_a_download() -> None:
    assert pretrained_preprocessing("timm:vit_tiny_patch16_224")["mean"] == [0.5, 0.5, 0.5]
    assert pretrained_preprocessing("mlp") == {}
