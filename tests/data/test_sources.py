"""Each source on files laid out as its publisher lays them out, and on the real ones where they are."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_lite import registry
from robustbench_lite.data import ArrayDataset, StreamDataset, load_dataset
from robustbench_lite.data.sources import parquet
from robustbench_lite.errors import PluginError, UserError

Make = Callable[..., Any]


def everything(dataset: Any) -> torch.Tensor:
    x = dataset.images(torch.arange(len(dataset)))
    assert isinstance(x, torch.Tensor)
    return x


def test_every_source_says_what_it_is() -> None:
    entries = registry.builtins("datasets")
    assert {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagenet"} <= set(entries)
    assert {"folder", "parquet", "npz"} <= set(entries)
    for name, entry in entries.items():
        source = entry.load()
        assert source.name == name
        assert source.summary.endswith(".")
        assert source.source


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = {"torchvision", "sklearn", "pandas", "pyarrow", "PIL"}
    code = f"import sys, robustbench_lite.data; print(*{heavy} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == []


# digits


def test_digits_split_is_stratified_disjoint_and_fixed() -> None:
    from sklearn.datasets import load_digits

    from robustbench_lite.data.sources.digits import split_index

    labels = load_digits(return_X_y=True)[1]
    test, train = split_index(labels, "test"), split_index(labels, "train")
    assert len(test) == 360
    assert sorted([*test, *train]) == list(range(1797))
    share = np.bincount(labels[test]) - 360 / 1797 * np.bincount(labels)
    assert abs(share).max() < 1
    assert load_dataset("digits").fingerprint == "cec7ac81137680b3419ed066c4d1e0d5ef90e0e7a8b58807677e2dc813e33b0d"
    train_set = load_dataset("digits", split="train")
    assert train_set.fingerprint == "b7456aa2e0e7fb56a0cccdc4e6f7d42250132e11eecfee4f5a96bb6febf4143c"


def test_digits_are_the_digits() -> None:
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    assert dataset.shape == (1, 32, 32)
    assert dataset.classes == tuple("0123456789")
    x = everything(dataset)
    assert torch.equal(x * 1024, (x * 1024).round())
    images, labels = load_digits(return_X_y=True)
    from robustbench_lite.data.sources.digits import split_index

    index = split_index(labels, "test")
    assert dataset.labels.tolist() == labels[index].tolist()
    # An up-sampled image, averaged over its 4x4 blocks, correlates with the original.
    means = torch.nn.functional.avg_pool2d(x, 4).flatten().numpy()
    assert np.corrcoef(means, images[index].reshape(-1))[0, 1] > 0.95
    assert not set(map(bytes, x.numpy())) & set(map(bytes, everything(load_dataset("digits", split="train")).numpy()))


# what torchvision reads


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files(name: str, folder: str, idx_folder: Make, pixels: Make) -> None:
    root = idx_folder(folder)
    dataset = load_dataset(name, data_dir=root)
    assert (dataset.name, dataset.split, dataset.shape) == (name, "test", (1, 28, 28))
    assert len(dataset.classes) == 10
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(everything(dataset), torch.from_numpy(pixels(5, 1, 28, 28, seed=2)) / 255)
    train = load_dataset(name, data_dir=root / folder, split="train", image_size=28)
    assert torch.equal(everything(train), torch.from_numpy(pixels(12, 1, 28, 28, seed=1)) / 255)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_pickles(name: str, classes: int, cifar_folder: Make, pixels: Make) -> None:
    root = cifar_folder(classes)
    dataset = load_dataset(name, data_dir=root)
    assert dataset.shape == (3, 32, 32)
    assert dataset.classes == tuple(f"class {i}" for i in range(classes))
    assert dataset.labels.tolist() == [0, 1, classes - 1, 2]
    assert torch.equal(everything(dataset), torch.from_numpy(pixels(4, 3, 32, 32, seed=10)) / 255)
    batches = 5 if classes == 10 else 1
    train = load_dataset(name, data_dir=root, split="train")
    expected = np.concatenate([pixels(4, 3, 32, 32, seed=i) for i in range(batches)])
    assert torch.equal(everything(train), torch.from_numpy(expected) / 255)


def test_what_torchvision_reads_is_loaded_in_one_place() -> None:
    loads = [registry.load("datasets", name).load for name in ("mnist", "fashion-mnist", "cifar10", "cifar100")]
    assert len({load.__func__ for load in loads}) == 1


def test_a_folder_may_be_a_text(idx_folder: Make) -> None:
    root = idx_folder("MNIST")
    given = [everything(load_dataset("mnist", data_dir=folder)) for folder in (root, str(root), f"{root}/MNIST")]
    assert torch.equal(given[0], given[1]) and torch.equal(given[0], given[2])


def test_default_folder_is_in_the_cache(idx_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = idx_folder("MNIST")
    (root / "data").mkdir()
    (root / "MNIST").rename(root / "data" / "MNIST")
    monkeypatch.setenv("RBL_CACHE", str(root))
    assert len(load_dataset("mnist")) == 5


def test_real_mnist(shared_data: Path) -> None:
    dataset = load_dataset("mnist", data_dir=shared_data)
    assert torch.bincount(dataset.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert dataset.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(float(dataset.images(torch.arange(1000)).mean()) - 0.1307) < 0.01


# folders


def test_folder_is_sorted_and_labelled_by_folder(image_folder: Path, pixels: Make) -> None:
    dataset = load_dataset(f"folder:{image_folder}")
    assert isinstance(dataset, StreamDataset)
    assert (dataset.name, dataset.classes, dataset.shape) == ("folder:pets", ("cat", "dog"), (3, 12, 10))
    assert dataset.labels.tolist() == [0] * 5 + [1] * 4
    expected = np.stack([pixels(12, 10, 3, seed=i) for i in range(9)]).transpose(0, 3, 1, 2)
    assert torch.equal(everything(dataset), torch.from_numpy(expected.copy()) / 255)


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_folder_with_splits_shares_the_classes(name: str, tmp_path: Path, pixels: Make, encode: Make) -> None:
    for file in (f"{name}/zebra/0.png", f"{name}/ant/1.png", "train/ant/2.png", "train/bee/3.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(encode(pixels(4, 4)))
    test = load_dataset(f"folder:{tmp_path}")
    train = load_dataset(f"folder:{tmp_path}", split="train")
    assert test.classes == train.classes == ("ant", "bee", "zebra")
    assert test.labels.tolist() == [0, 2]
    assert train.labels.tolist() == [0, 1]
    assert test.shape == (1, 4, 4)


def test_class_may_be_called_train(tmp_path: Path, pixels: Make, encode: Make) -> None:
    for name in ("plane", "train"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(encode(pixels(4, 4)))
    assert load_dataset(f"folder:{tmp_path}").classes == ("plane", "train")
    with pytest.raises(UserError, match="nothing to train on"):
        load_dataset(f"folder:{tmp_path}", split="train")


def test_sizes_and_colours_are_brought_together(tmp_path: Path, pixels: Make, encode: Make) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(encode(pixels(8, 6)))
    (tmp_path / "a" / "1.png").write_bytes(encode(np.full((32, 48, 3), (255, 0, 51), dtype=np.uint8)))
    (tmp_path / "a" / "2.png").write_bytes(encode(pixels(3, 50, 4)))
    palette = Image.fromarray(pixels(8, 6)).convert("P")
    palette.save(tmp_path / "a" / "3.png", transparency=bytes([0] * 10))
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.shape == (3, 8, 6)
    x = everything(dataset)
    assert torch.equal(x[0], torch.from_numpy(pixels(8, 6)).expand(3, 8, 6) / 255)
    assert torch.allclose(x[1], torch.tensor([1, 0, 0.2]).view(3, 1, 1).expand(3, 8, 6))
    assert everything(load_dataset(f"folder:{tmp_path}", image_size=5)).shape == (4, 3, 5, 5)


def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    wide = np.array([[0, 128, 129], [32768, 65535, 257]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "a" / "0.png")
    dataset = load_dataset(f"folder:{tmp_path}")
    assert (everything(dataset) * 255).round().int().tolist() == [[[[0, 0, 1], [128, 255, 1]]]]


def test_centre_crop_keeps_the_centre(tmp_path: Path, encode: Make) -> None:
    (tmp_path / "a").mkdir()
    wide: Any = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 255
    (tmp_path / "a" / "0.png").write_bytes(encode(wide))
    assert everything(load_dataset(f"folder:{tmp_path}", image_size=10)).min() == 1


# ImageNet

WNIDS = [f"n{i:08d}" for i in range(1000)]


@pytest.fixture
def imagenet(tmp_path: Path, pixels: Make, encode: Make) -> Path:
    data: dict[int, bytes] = {i: encode(pixels(300 + 40 * (i == 0), 270, 3, seed=i)) for i in (0, 999)}
    tiny: bytes = encode(pixels(2, 2, 3))
    for i, wnid in enumerate(WNIDS):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        (tmp_path / "val" / wnid / f"{i}.JPEG").write_bytes(data.get(i, tiny))
    return tmp_path


def test_imagenet_is_scaled_and_cropped_as_it_is_evaluated(imagenet: Path) -> None:
    from torchvision.transforms import v2

    dataset = load_dataset("imagenet", data_dir=imagenet)
    assert isinstance(dataset, StreamDataset)
    assert dataset.shape == (3, 224, 224)
    assert dataset.labels.tolist() == list(range(1000))
    assert dataset.classes[1] == WNIDS[1]
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    for i in (0, 500, 999):
        with Image.open(imagenet / "val" / WNIDS[i] / f"{i}.JPEG") as image:
            assert torch.equal(dataset.images(torch.tensor([i]))[0], expected(image) / 255)
    assert load_dataset("imagenet", data_dir=imagenet / "val").fingerprint == dataset.fingerprint
    torch.save(({wnid: (f"thing {wnid}", "other") for wnid in WNIDS}, []), imagenet / "meta.bin")
    assert load_dataset("imagenet", data_dir=imagenet).classes[7] == "thing n00000007"
    with pytest.raises(UserError, match=r"(?s)^--dataset: imagenet is not in .*--data-dir"):
        load_dataset("imagenet", data_dir=imagenet, split="train")


def test_imagenet_archives_are_unpacked(tmp_path: Path, pixels: Make, encode: Make, monkeypatch: Any) -> None:
    import hashlib

    from scipy.io import savemat
    from torchvision.datasets import imagenet as module

    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = np.array([(i + 1, w, f"word {i}, other", "", 0) for i, w in enumerate(WNIDS)], dtype=kind)
    mat = io.BytesIO()
    savemat(mat, {"synsets": synsets})
    truth = "\n".join(str(1000 - i) for i in range(1000)).encode()
    devkit = "ILSVRC2012_devkit_t12"
    image = encode(pixels(2, 2, 3))
    members = {
        f"{devkit}.tar.gz": {f"{devkit}/data/meta.mat": mat.getvalue()}
        | {f"{devkit}/data/ILSVRC2012_validation_ground_truth.txt": truth},
        "ILSVRC2012_img_val.tar": {f"ILSVRC2012_val_{i:08d}.JPEG": image for i in range(1, 1001)},
    }
    for key, (archive, files) in zip(("devkit", "val"), members.items(), strict=True):
        with tarfile.open(tmp_path / archive, "w:gz" if archive.endswith("gz") else "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        md5 = hashlib.md5((tmp_path / archive).read_bytes()).hexdigest()
        monkeypatch.setitem(module.ARCHIVE_META, key, (archive, md5))
    dataset = load_dataset("imagenet", data_dir=tmp_path)
    assert dataset.classes[:2] == ("word 0", "word 1")
    assert (tmp_path / "val" / WNIDS[999] / "ILSVRC2012_val_00000001.JPEG").is_file()
    assert len(dataset) == 1000


# Parquet


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label"), ("image", "labels")])
def test_parquet_as_the_hub_writes_it(
    columns: tuple[str, str], tmp_path: Path, write_parquet: Make, pixels: Make, encode: Make
) -> None:
    images = pixels(8, 6, 5, 3)
    data = [encode(image) for image in images]
    names = ["cat", "dog", "eel"]
    folder = tmp_path / "hub" / "data"
    options = {"names": names, "columns": columns}
    write_parquet(folder / "test-00000-of-00002.parquet", data[:5], [0, 1, 0, 1, 0], **options)
    write_parquet(folder / "test-00001-of-00002.parquet", data[5:], [1, 1, 0], **options)
    write_parquet(folder / "train-00000-of-00001.parquet", data[::-1], [2] * 8, **options)
    for path in (tmp_path / "hub", folder):
        dataset = load_dataset(f"parquet:{path}")
        assert isinstance(dataset, ArrayDataset)
        assert dataset.classes == tuple(names)
        assert dataset.labels.tolist() == [0, 1, 0, 1, 0, 1, 1, 0]
        assert torch.equal(everything(dataset), torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert dataset.name == "parquet:data"
    train = load_dataset(f"parquet:{tmp_path / 'hub'}", split="train")
    assert torch.equal(everything(train), everything(dataset).flip(0))
    single = load_dataset(f"parquet:{folder / 'test-00001-of-00002.parquet'}")
    assert torch.equal(everything(single), everything(dataset)[5:])


def test_parquet_without_names_counts_the_labels_of_all_splits(
    tmp_path: Path, write_parquet: Make, pixels: Make, encode: Make
) -> None:
    data = [encode(pixels(4, 4))] * 2
    write_parquet(tmp_path / "validation-0.parquet", data, [0, 1])
    write_parquet(tmp_path / "train-0.parquet", data, [0, 6])
    assert load_dataset(f"parquet:{tmp_path}").classes == tuple("0123456")


def test_large_parquet_streams_the_same_images(
    tmp_path: Path, write_parquet: Make, pixels: Make, encode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [encode(image) for image in pixels(8, 6, 5)]
    for shard in range(2):
        write_parquet(tmp_path / f"test-{shard}.parquet", data[4 * shard :][:4], [0, 1, 2, 3], row_group_size=3)
    small = load_dataset(f"parquet:{tmp_path}")
    monkeypatch.setattr(parquet, "MEMORY", 8 * 6 * 5 - 1)
    large = load_dataset(f"parquet:{tmp_path}")
    assert isinstance(large, StreamDataset)
    index = torch.tensor([7, 0, 3, 4, 2])
    assert torch.equal(large.images(index), small.images(index))
    assert torch.equal(large.labels, small.labels)
    assert large.files.where(7) == f"row 3 of {tmp_path / 'test-1.parquet'}"


def test_real_cifar10_in_parquet(shared_data: Path) -> None:
    dataset = load_dataset(f"parquet:{shared_data / 'cifar10-jpeg'}")
    assert dataset.name == "parquet:cifar10-jpeg"
    assert dataset.shape == (3, 32, 32)
    assert dataset.classes[:3] == ("airplane", "automobile", "bird")
    assert torch.bincount(dataset.labels).tolist() == [1000] * 10
    mean = dataset.images(torch.arange(2000)).mean(dim=(0, 2, 3))
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.02)


# arrays

UINT8 = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
FLOAT = np.random.default_rng(0).random((4, 3, 6, 5))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (UINT8, UINT8.transpose(0, 3, 1, 2) / np.float32(255)),
        (UINT8[..., 0], UINT8[:, None, :, :, 0] / np.float32(255)),
        (np.asfortranarray(UINT8), UINT8.transpose(0, 3, 1, 2) / np.float32(255)),
        (FLOAT, FLOAT.astype(np.float32)),
        (FLOAT.astype(np.float16), FLOAT.astype(np.float16).astype(np.float32)),
        (FLOAT.astype(">f4"), FLOAT.astype(np.float32)),
    ],
    ids=["NHWC", "NHW", "fortran", "float64", "float16", "big-endian"],
)
@pytest.mark.parametrize("kind", [np.uint8, np.int64, ">i4", np.uint16])
def test_npz(images: Any, expected: Any, kind: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 2, 1, 2], dtype=kind))
    dataset = load_dataset(f"npz:{tmp_path / 'a.npz'}")
    assert (dataset.name, dataset.classes, dataset.shape) == ("npz:a.npz", ("0", "1", "2"), expected.shape[1:])
    assert dataset.labels.tolist() == [0, 2, 1, 2]
    assert np.array_equal(everything(dataset).numpy(), expected)


def test_npz_classes_and_splits(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    two: dict[str, Any] = {"images": UINT8, "labels": [0, 1, 0, 1]}
    np.savez_compressed(path, **two, classes=["cat", "dog", "eel"])
    assert load_dataset(f"npz:{path}").classes == ("cat", "dog", "eel")
    np.savez(path, **two, n_classes=4)
    assert load_dataset(f"npz:{path}").classes == ("0", "1", "2", "3")
    np.savez(path, **two, train_images=UINT8[:2], train_labels=[0, 5])
    assert len(load_dataset(f"npz:{path}").classes) == 6
    train = load_dataset(f"npz:{path}", split="train")
    assert train.labels.tolist() == [0, 5]
    np.savez(path, test_images=UINT8[:1], test_labels=[1])
    assert len(load_dataset(f"npz:{path}")) == 1


# from outside

SOURCE = """
import torch
from robustbench_lite.data import from_arrays

class Stripes:
    name = "stripes"
    summary = "Two stripes."
    source = "here"

    @staticmethod
    def load(argument, *, split, data_dir, download, image_size, workers):
        x = torch.zeros(4, 1, 3, 3)
        x[::2] = float(argument or 1)
        return from_arrays(x, torch.arange(4) % 2, name="stripes", split=split, classes=("white", "black"))

class Broken:
    @staticmethod
    def load(argument, **options):
        return 1 / 0

class Odd:
    @staticmethod
    def load(argument, **options):
        return [1, 2]

nothing = 3
"""


def test_source_in_a_file_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    assert load_dataset(f"{file}:Stripes").classes == ("white", "black")
    assert everything(load_dataset(f"{file}:Stripes:0.5")).max() == 0.5
    with pytest.raises(UserError, match="images must be in"):
        load_dataset(f"{file}:Stripes:2")
    with pytest.raises(PluginError, match="Broken raised ZeroDivisionError"):
        load_dataset(f"{file}:Broken")
    with pytest.raises(UserError, match=r"load must return a robustbench_lite.data.Dataset, got list"):
        load_dataset(f"{file}:Odd")
    with pytest.raises(UserError, match="must be a class with a static method `load`"):
        load_dataset(f"{file}:nothing")
