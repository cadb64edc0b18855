"""Normalisation put before a network: `--mean` and `--std`, `rbl.Normalize`, and what weights and records say of it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import robustbench_lite as rbl
from robustbench_lite.data import Framing, load_dataset
from robustbench_lite.errors import UserError
from robustbench_lite.models import Normalization, Normalize, load_model, read_weights, save_weights, tensors_sha256
from robustbench_lite.models.advice import missing_normalization
from robustbench_lite.models.build import pretrained_framing
from robustbench_lite.models.classes import aligned

SHAPE = (3, 4, 4)
X = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 2


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ("0.5", "0.25", ((0.5,), (0.25,))),
        ("0.4, 0.5,0.6", "1/4", ((0.4, 0.5, 0.6), (0.25,))),
        ("imagenet", None, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        (None, "MNIST", ((0.1307,), (0.3081,))),
        ("half", "1", ((0.5,), (1,))),
    ],
)
def test_what_the_options_say(mean: str | None, std: str | None, expected: Any) -> None:
    found = Normalization.parse(mean, std)
    assert found is not None and (found.mean, found.std) == expected


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ("0.5", None, "--std (1 for none) must be given too, or a name for both: imagenet"),
        (None, "0.5", "--mean (0 for none) must be given too"),
        ("imagnet", None, "mean: unknown name 'imagnet'; did you mean imagenet"),
        ("0.5", "0", "std must be > 0, got 0"),
        ("0.5", "-1", "std must be > 0, got -1"),
        ("123.7,116.3,103.5", "58.4,57.1,57.4", "mean must be in [0, 1], as pixels are"),
        ("0.5", "57.4", "divide it by 255"),
        ("0.5,0.5", "0.5,0.5,0.5", "got 2 and 3 values"),
        ("0.5;0.5", "1", "mean must be a number"),
    ],
)
def test_what_cannot_normalise_is_one_line(mean: str | None, std: str | None, told: str) -> None:
    with pytest.raises(UserError) as error:
        Normalization.parse(mean, std)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, 0.25), ([0.5] * 3, 0.25), (torch.full((3,), 0.5), np.full(3, 0.25)), (0.5, [0.25] * 3)]
)
def test_the_module_normalises(mean: Any, std: Any) -> None:
    net = rbl.Normalize(nn.Flatten(), mean, std)
    assert torch.allclose(net(X), ((X - 0.5) / 0.25).flatten(1))
    assert net.preprocessing["mean"][0] == 0.5
    for wrong in ((0.5, None), (2, 1), ([0.5, 0.5], 1)):
        with pytest.raises(UserError):
            rbl.Normalize(nn.Flatten(), *wrong)(X)


def test_a_run_says_what_was_put_before_the_network() -> None:
    inner = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    runs = [
        rbl.evaluate(net.eval(), X, Y, attack="fgsm", eps=0.01, checks=False).run.specification
        for net in (inner, rbl.Normalize(inner, 0.5, 0.25), rbl.Normalize(inner, 0.4, 0.25))
    ]
    assert [run.model.preprocessing for run in runs] == [
        {},
        {"mean": [0.5], "std": [0.25]},
        {"mean": [0.4], "std": [0.25]},
    ]
    assert len({run.run_id() for run in runs}) == 3


@pytest.mark.parametrize("method", ["crown", "interval"])
def test_bounds_of_one_value_are_those_of_one_each(method: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    tables = [
        rbl.certify(net.eval(), X, Y, method=method, eps=0.01).certificate.table
        for net in (rbl.Normalize(inner, 0.5, 0.25), rbl.Normalize(inner, [0.5] * 3, [0.25] * 3))
    ]
    assert tables[0].equals(tables[1])


def test_weights_keep_what_was_before_their_network(tmp_path: Path) -> None:
    options: dict[str, Any] = {"n_classes": 2, "shape": SHAPE}
    plain = load_model("mlp", **options, train=lambda module, **_: module, recipe={"a": 1})
    normalize = Normalization((0.5,), (0.25,))
    given = load_model("mlp", **options, train=lambda module, **_: module, recipe={"a": 1}, normalize=normalize)

    def untrained(module: nn.Module, **_: Any) -> nn.Module:
        raise AssertionError("the network is in the cache")

    again = load_model("mlp", **options, recipe={"a": 1}, normalize=normalize, train=untrained)
    assert torch.equal(given.module(X), again.module(X)) and isinstance(again.module, Normalize)
    assert given.preprocessing == {"mean": [0.5], "std": [0.25]} and given.sha256 != plain.sha256
    file = tmp_path / "net.safetensors"
    save_weights(given.module, file, model="mlp")
    tensors, said = read_weights(file)
    assert "1.weight" in tensors and said["preprocessing"] == given.preprocessing
    for known in (None, normalize):
        loaded = load_model("mlp", **options, weights=str(file), normalize=known)
        assert torch.equal(loaded.module(X), given.module(X)) and loaded.preprocessing == given.preprocessing
    with pytest.raises(UserError, match="has its normalisation inside"):
        load_model("mlp", **options, weights=str(file), normalize=Normalization((0.4,), (0.25,)))
    # As files were written before: the state of the whole, with no word on it.
    old = tmp_path / "old.safetensors"
    state = {name: tensor.contiguous() for name, tensor in given.module.state_dict().items()}
    metadata = {"format": "robustbench-lite weights 1", "sha256": tensors_sha256(state), "recipe": "null"}
    save_file(state, old, metadata=metadata)
    assert torch.equal(load_model("mlp", **options, weights=str(old)).module(X), given.module(X))
    with pytest.raises(UserError, match=r"^mean must have 1 value or 3, as the images have channels, got 2"):
        load_model("mlp", **options, weights=str(file), normalize=Normalization((0.4, 0.5), (0.25,)))


def test_published_weights_in_a_file_want_their_normalisation(tmp_path: Path) -> None:
    net = nn.Identity()
    told = missing_normalization("resnet18", str(tmp_path / "resnet18-f37072fd.pth"), net)
    assert told is not None and told.endswith("nothing normalises: give --mean imagenet")
    assert missing_normalization("resnet18", "mine.pth", net) is None
    assert missing_normalization("resnet18", "resnet18-f37072fd.pth", rbl.Normalize(net, "imagenet")) is None


def test_a_network_of_timm_from_a_factory_wants_its_normalisation(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import timm\ndef make():\n    return timm.create_model('test_resnet', pretrained=False)\n"
    )
    spec = f"{tmp_path / 'net.py'}:make"
    loaded = load_model(spec, n_classes=1000, shape=(3, 160, 160))
    told = missing_normalization(spec, None, loaded.module)
    assert told is not None and "is a network of timm" in told and "give --mean" in told


# resize and crop


def images(folder: Path, size: tuple[int, int]) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name / "0.png")
    return folder


@pytest.mark.parametrize("spec", ["resnet18", "resnet50", "torchvision:efficientnet_b1"])
def test_images_are_brought_to_torchvision_s_own_size(spec: str, tmp_path: Path) -> None:
    from torchvision.models import get_model_weights

    transforms = get_model_weights(spec.rpartition(":")[2]).DEFAULT.transforms()
    request = rbl_request(images(tmp_path, (300, 431)))
    data = aligned(request, [(spec, "pretrained")]).load()
    x = data.images(torch.arange(2))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transforms.mean, transforms.std))
    with Image.open(tmp_path / "a" / "0.png") as image:
        assert torch.allclose((x[0] - mean) / std, transforms(image), atol=1e-5)
    assert data.reading.framing == pretrained_framing(spec)


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_224.openai", "resnet50", "mobilenetv3_large_100"])
def test_images_are_brought_to_timm_s_own_size(name: str, tmp_path: Path) -> None:
    timm: Any = importlib.import_module("timm.data")
    config: Any = importlib.import_module("timm.models").get_pretrained_cfg(name)
    resolved = timm.resolve_data_config({}, pretrained_cfg=config.to_dict())
    transform = timm.create_transform(**resolved)
    data = aligned(rbl_request(images(tmp_path, (300, 431))), [(f"timm:{name}", "pretrained")]).load()
    mean, std = (torch.tensor(resolved[key]).view(3, 1, 1) for key in ("mean", "std"))
    with Image.open(tmp_path / "a" / "0.png") as image:
        assert torch.allclose((data.images(torch.tensor([0]))[0] - mean) / std, transform(image), atol=1e-5)


def test_the_resizing_is_in_the_record_and_in_the_fingerprint(tmp_path: Path) -> None:
    spec = f"folder:{images(tmp_path, (30, 40))}"
    plain = load_dataset(spec, image_size=16)
    same = load_dataset(spec, image_size=16, framing=Framing(8, 10))
    framed = load_dataset(spec, framing=Framing(16, 20))
    bicubic = load_dataset(spec, framing=Framing(16, 20, "bicubic"))
    squashed = load_dataset(spec, framing=Framing(16, 20, squash=True))
    assert same.fingerprint == plain.fingerprint and same.reading.framing is None
    assert len({data.fingerprint for data in (plain, framed, bicubic, squashed)}) == 4
    from robustbench_lite.plan_record import dataset_record

    record = dataset_record(bicubic, 2)
    assert record.framing == {"size": 16, "resize": 20, "interpolation": "bicubic", "squash": False}
    assert record.class_names == ("a", "b")
    assert "images resized to 20 (bicubic), the middle 16x16 kept, as the weights ask for" in bicubic.reading.notes
    # Images that have the size already are left alone.
    assert load_dataset(spec, framing=Framing(8, 10)).shape == (3, 8, 8)


def rbl_request(folder: Path) -> Any:
    from robustbench_lite.data_request import DataRequest

    return DataRequest(f"folder:{folder}", workers=0)
