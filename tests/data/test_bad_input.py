"""Whatever is wrong with data is said in one line that names the argument, and the file is left alone."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from robustbench_lite.data import from_arrays, load_dataset
from robustbench_lite.errors import UserError

Make = Callable[..., Any]


def refused(spec: str, *parts: str, **options: Any) -> None:
    """load_dataset raises one line that holds all `parts`."""
    with pytest.raises(UserError) as error:
        load_dataset(spec, **options)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_names_and_options() -> None:
    refused("digit", "--dataset", "did you mean digits?")
    refused("mnits", "--dataset", "did you mean mnist")
    refused("", "--dataset")
    refused("digits", "--split", "did you mean test?", split="tset")
    refused("digits", "--image-size", "at least 1, got 0", image_size=0)
    refused("digits", "--image-size", "32x32, got 28", image_size=28)
    refused("digits", "--workers", "got -1", workers=-1)
    refused("digits:8", "--dataset", "digits takes nothing after its name")
    for kind in ("folder", "npz", "parquet"):
        refused(kind, "--dataset", f"{kind}:PATH")
        refused(f"{kind}:", "--dataset", f"{kind}:PATH")
        refused(f"{kind}:no/such", "--dataset", "no such file or folder 'no/such'")
    refused("no_such.py:Thing", "--dataset", "no such file")


def test_bare_path_is_told_what_to_say(tmp_path: Path) -> None:
    (tmp_path / "a.npz").touch()
    refused(str(tmp_path), "--dataset", f"folder:{tmp_path}")
    refused(str(tmp_path / "a.npz"), "--dataset", f"npz:{tmp_path / 'a.npz'}")


# what torchvision reads


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST"),
        ("fashion-mnist", "FashionMNIST"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
    ],
)
def test_absent_files_name_both_ways_out(name: str, folder: str, tmp_path: Path) -> None:
    refused(name, "--dataset", f"{folder}/", "--data-dir", "--download", str(tmp_path), data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / folder).mkdir()
    refused(name, "is not in", "--data-dir", "--download", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_failed_download_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    refused(name, "--download", "no route to host", "--data-dir", data_dir=tmp_path, download=True)


def test_damaged_idx_file(idx_folder: Make) -> None:
    root = idx_folder("MNIST")
    file = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    for damaged in (file.read_bytes()[:-100], b"", b"<html>not found</html>", b"\0\0\x08\x03"):
        file.write_bytes(damaged)
        refused("mnist", "--dataset: mnist", "cannot be read", "--data-dir", data_dir=root)
        assert file.read_bytes() == damaged


def test_damaged_cifar_pickle_is_not_unpickled(cifar_folder: Make) -> None:
    root = cifar_folder(10)
    file = root / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    refused("cifar10", "--dataset: cifar10", "missing or damaged", data_dir=root)
    assert not Path("pwned").exists()


def test_imagenet(tmp_path: Path) -> None:
    refused("imagenet", "--data-dir", "val/", "--download", data_dir=tmp_path)
    refused("imagenet", "--download", "image-net.org", data_dir=tmp_path, download=True)
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    refused("imagenet", "--data-dir", "1000 class folders", "got 1", "folder:", data_dir=tmp_path)
    refused("imagenet:x", "takes nothing after its name")
    other = tmp_path / "other"
    other.mkdir()
    (other / "ILSVRC2012_img_val.tar").write_bytes(b"no tar")
    refused("imagenet", "--data-dir", "archives", "cannot be unpacked", "devkit", data_dir=other)


# folders


def test_folder(tmp_path: Path, image_folder: Path) -> None:
    spec = f"folder:{image_folder}"
    refused(spec, "--dataset", "no train/", "nothing to train on", split="train")
    refused(f"{spec}/cat/0.png", "--dataset", "must be a folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(f"folder:{empty}", "one folder for each class, found none")
    (empty / "class").mkdir()
    refused(f"folder:{empty}", "no images", str(empty))
    (image_folder / "cat" / "0.png").write_bytes(b"GIF? no.")
    refused(spec, "--dataset", "cat/0.png cannot be decoded", "no image format knows it")
    (image_folder / "cat" / "0.png").write_bytes(b"")
    refused(spec, "--dataset", "cat/0.png cannot be decoded")


def test_folder_with_train_only(tmp_path: Path, encode: Make, pixels: Make) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(encode(pixels(4, 4)))
    refused(f"folder:{tmp_path}", "--dataset", "has train/ but no test/ or val/ or validation/")


# Parquet


def test_parquet(tmp_path: Path, write_parquet: Make, encode: Make, pixels: Make) -> None:
    data = [encode(pixels(4, 4))] * 3
    file = tmp_path / "test-0.parquet"
    spec = f"parquet:{file}"

    def wrong(labels: Any, *parts: str, images: Any = data, **options: Any) -> None:
        write_parquet(file, images, labels, **options)
        refused(spec, "--dataset", *parts)

    wrong([0, 1, -1], "label must not be negative, got -1")
    wrong([0, 1, 2], "label must be in 0..1 for 2 classes, got 2", names=["a", "b"])
    wrong([0, 1, None], "label must not be null, got 1")
    wrong([0.0, 1.5, 2.0], "label must be whole numbers, got 1.5")
    wrong(["a", "b", "c"], "'c' is not a class name", names=["a", "b"])
    wrong([1, 2, 3], "label are 1 to 3, and none is 0: do they start at 1?", "subtract 1", "--class-names")
    wrong(pa.array([], type=pa.int64()), "at least one image, got 0 rows", images=[])
    wrong([0, 1, 2], "must have a column image", "picture", columns=("picture", "label"))
    wrong([0, 1, 2], "must have a column label", "genus", columns=("image", "genus"))
    wrong([0, 1, 2], "row 1 of", "cannot be decoded", images=[data[0], b"no image", data[2]])
    wrong([0, 1, 2], "row 2 of", "its bytes are not in the file", images=[data[0], data[1], None])
    wrong([0, 1, 2], "row 0 of", "cannot be decoded", images=[data[0][:40], data[1], data[2]])
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), file)
    refused(spec, "image must be struct<bytes, path> or binary, got string")
    whole = write_parquet(file, data, [0, 1, 2]).read_bytes()
    for damaged in (b"", b"no Parquet at all", whole[:-20], whole[:200]):
        file.write_bytes(damaged)
        refused(spec, "--dataset", "test-0.parquet", "not a readable Parquet file")
        assert file.read_bytes() == damaged


def test_parquet_splits(tmp_path: Path, write_parquet: Make, encode: Make, pixels: Make) -> None:
    refused(f"parquet:{tmp_path}", "{split}-*.parquet", "found none")
    file = write_parquet(tmp_path / "test-0.parquet", [encode(pixels(4, 4))], [0])
    refused(f"parquet:{tmp_path}", "train-*.parquet", "it holds test-0.parquet", split="train")
    refused(f"parquet:{file}", "nothing to train on", "train-*.parquet", split="train")


# arrays

U8 = np.zeros((3, 4, 4), dtype=np.uint8)
F32 = np.zeros((3, 1, 4, 4), dtype=np.float32)
NAN, FAR, LOW, INF = F32.copy(), F32.copy(), F32.copy(), F32.copy()
NAN[2, 0, 3, 3], FAR[0], LOW[1], INF[1] = np.nan, 255, -0.01, np.inf
Y = np.arange(3)


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"images": NAN, "labels": Y}, ["images must be in [0, 1], got NaN"]),
        ({"images": INF, "labels": Y}, ["images must be in [0, 1], got NaN or infinity"]),
        ({"images": FAR, "labels": Y}, ["images must be in [0, 1]", "to 255"]),
        ({"images": LOW, "labels": Y}, ["images must be in [0, 1]", "from -0.01"]),
        ({"images": F32[0, 0], "labels": Y}, ["images must be (N, C, H, W), got (4, 4)", "reshape", "(N, 1, 2, 2)"]),
        ({"images": F32 + 7, "labels": Y}, ["images must be in [0, 1]", "divide by 255"]),
        (
            {"images": U8.astype(int) + 256, "labels": Y},
            ["images must be uint8", "got int64 from 256 to 256", "divide"],
        ),
        ({"images": U8 + 1, "labels": Y}, ["images must be uint8", "from 1 to 1", "is 1 white?"]),
        ({"images": F32.astype(complex), "labels": Y}, ["images must be numbers, got complex128"]),
        ({"images": U8[:0], "labels": Y[:0]}, ["images must hold at least one image"]),
        ({"images": U8, "labels": Y[:2]}, ["labels must be (3,), one for each image, got (2,)"]),
        ({"images": U8, "labels": Y[:, None, None] + [[0, 1]]}, ["labels must be (3,)", "got (3, 1, 2)"]),
        ({"images": U8, "labels": np.ones((3, 3))}, ["one class for each image, got rows with several"]),
        ({"images": U8, "labels": np.full((3, 3), 1 / 3)}, ["probabilities", "y.argmax(1)"]),
        ({"images": U8, "labels": Y + 1}, ["labels are 1 to 3", "do they start at 1?", "n_classes"]),
        ({"images": U8, "labels": [1, 3, 3], "n_classes": 3}, ["got 1 to 3; do they start at 1? Then subtract 1"]),
        ({"images": U8, "labels": Y - 1}, ["labels must not be negative, got -1"]),
        ({"images": U8, "labels": Y + 0.25}, ["labels must be whole numbers, got 0.25"]),
        ({"images": U8, "labels": ["a", "b", "C"], "classes": ["a", "b"]}, ["'C' is not a class name"]),
        ({"images": U8, "labels": Y.astype(complex)}, ["labels must be numbers, got complex128"]),
        ({"images": U8, "labels": Y, "n_classes": 2}, ["labels must be in 0..1 for 2 classes, got 2"]),
        ({"images": U8, "labels": Y, "classes": ["a", "b"]}, ["labels must be in 0..1 for 2 classes, got 2"]),
        ({"images": U8, "labels": Y, "classes": [1, 2, 3]}, ["classes must be (K,) names"]),
        ({"images": U8, "labels": Y, "n_classes": 2.5}, ["n_classes must be one whole number"]),
        ({"images": U8}, ["must hold the array 'labels'", "it holds images"]),
        ({"x": U8, "y": Y}, ["must hold the array 'images'", "it holds x, y"]),
        ({"images": U8, "labels": np.array([0, 1, None])}, ["the array 'labels'", "pickled"]),
    ],
)
def test_npz(arrays: Any, parts: list[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    refused(f"npz:{tmp_path / 'a.npz'}", "--dataset", "a.npz", *parts)


def test_npz_files(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    spec = f"npz:{file}"
    np.savez_compressed(
        file, images=np.random.default_rng(0).integers(0, 256, (9, 9, 9), dtype=np.uint8), labels=[0] * 9
    )
    whole = file.read_bytes()
    flipped = whole[:150] + bytes([whole[150] ^ 255]) + whole[151:]
    single = io.BytesIO()
    np.save(single, U8)
    for damaged in (b"", b"no zip", whole[: len(whole) // 2], whole[:-5], flipped, single.getvalue()):
        file.write_bytes(damaged)
        refused(spec, "--dataset", "a.npz")
        assert file.read_bytes() == damaged
    refused(f"npz:{tmp_path}", "--dataset", str(tmp_path))


def test_npz_without_training_images(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, images=U8, labels=Y)
    refused(f"npz:{file}", "'train_images'", "split train", "add it", split="train")
    np.savez(file, images=U8, labels=Y, train_images=U8)
    refused(f"npz:{file}", "'train_labels'", "split train", "add it", split="train")
    refused(f"npz:{file}", "--image-size", "4x4, got 8", image_size=8)


# tensors from Python


def test_from_arrays_names_what_it_was_told() -> None:
    x, y = torch.rand(3, 1, 4, 4), torch.arange(3)
    with pytest.raises(UserError, match=r"^x must be \(N, C, H, W\), got \(4, 4\); reshape"):
        from_arrays(x[0, 0], y, arguments=("x", "y"))
    with pytest.raises(UserError, match=r"^y must be in 0..1 for 2 classes, got 2$"):
        from_arrays(x, y, classes=2, arguments=("x", "y"))
    with pytest.raises(UserError, match=r"^x must be in \[0, 1\]"):
        from_arrays(x * 2 + 1, y, arguments=("x", "y"))
