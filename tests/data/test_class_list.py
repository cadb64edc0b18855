"""Labels numbered by a class list: given, in a file, or recorded with the weights of a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from robustbench_lite.data import from_arrays, parse_classes, with_classes
from robustbench_lite.data_request import DataRequest
from robustbench_lite.errors import UserError
from robustbench_lite.models import save_weights
from robustbench_lite.models.classes import aligned, recorded_classes

from .test_layout import fill

X = torch.rand(4, 1, 4, 4)


def test_labels_follow_the_list() -> None:
    data = from_arrays(X, [0, 1, 2, 1], classes=["Cat", "sea_lion", "dog"])
    moved = with_classes(data, ["dog", "owl", "cat", "Sea Lion"])
    assert moved.labels.tolist() == [2, 3, 0, 3]
    assert moved.classes == ("dog", "owl", "cat", "Sea Lion") and moved.fingerprint != data.fingerprint
    assert with_classes(data, data.classes) is data
    longer = with_classes(data, [*data.classes, "owl"])
    assert longer.labels.tolist() == [0, 1, 2, 1] and longer.fingerprint == data.fingerprint
    counted = from_arrays(X, [0, 1, 2, 1])
    assert with_classes(counted, ["a", "b", "c", "d"]).labels.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["dog", "owl"], "the data set's class 'cat' is not in the list of 2 once"),
        (["dog", "cat", "cat"], "class 'cat' is not in the list of 3 once"),
        (["numeric"], "numeric is for classes named by numbers, got 'cat'"),
    ],
)
def test_a_list_that_does_not_fit(names: list[str], told: str) -> None:
    with pytest.raises(UserError, match="--class-names") as error:
        with_classes(from_arrays(X, [0, 1, 0, 1], classes=["cat", "dog"]), names)
    assert told in str(error.value)


def test_lists_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat\n\nsea lion\n", "utf-8-sig")
    for i, value in enumerate((["cat", "sea lion"], {"sea lion": 1, "cat": 0}, {"1": "sea lion", "0": "cat"})):
        (tmp_path / f"{i}.json").write_text(json.dumps(value))
    names = ("cat", "sea lion")
    assert all(parse_classes(str(file)) == names for file in tmp_path.iterdir())
    assert parse_classes("cat, sea lion") == names
    (tmp_path / "bad.json").write_text('{"cat": 0, "dog": 5}')
    for text, told in (
        (str(tmp_path / "bad.json"), "no list of class names (expected the indices 0..1)"),
        (str(tmp_path / "none.txt"), "no such file"),
        ("cat,dog,cat", "'cat' is given twice"),
        ("cat", "at least 2"),
    ):
        with pytest.raises(UserError, match=r"^--class-names: ") as error:
            parse_classes(text)
        assert told in str(error.value)


def test_weights_say_which_class_is_which(tmp_path: Path) -> None:
    names = ("glioma", "meningioma", "none", "pituitary")
    file = str(tmp_path / "net.safetensors")
    save_weights(nn.Linear(2, 4), file, model="mlp", classes=names)
    request = DataRequest(f"folder:{fill(tmp_path / 'own', '.', classes=('Pituitary', 'none'), count=1)}")
    assert request.load().labels.tolist() == [0, 1]
    found = aligned(request, [("mlp", file)])
    assert (found.load().classes, found.load().labels.tolist()) == (names, [3, 2])
    given = DataRequest(request.dataset, classes=("none", "pituitary"))
    assert aligned(given, [("mlp", file)]) is given
    assert recorded_classes("mlp", file, ["zebra", "none"]) is None
    assert recorded_classes("mlp", None, ["none"]) is None
    save_weights(nn.Linear(2, 4), tmp_path / "other.safetensors", model="mlp", classes=names[::-1])
    with pytest.raises(UserError, match="different orders"):
        aligned(request, [("mlp", file), ("mlp", str(tmp_path / "other.safetensors"))])


def test_published_imagenet_weights_know_wordnet_numbers(tmp_path: Path) -> None:
    fill(tmp_path, ".", classes=("n01440764", "n02102040", "n03888257"), count=1)  # tench, springer, parachute
    found = aligned(DataRequest(f"folder:{tmp_path}", image_size=8), [("resnet18", "pretrained")])
    assert found.load().labels.tolist() == [0, 217, 701] and len(found.load().classes) == 1000
    words = recorded_classes("timm:resnet18", "pretrained", ["tench", "english_springer", "Parachute"])
    assert words is not None and words[217] == "English springer"
    assert recorded_classes("resnet18", "pretrained", ["tench", "glioma"]) is None
    assert recorded_classes("resnet18", "pretrained", ["0", "1"]) is None
