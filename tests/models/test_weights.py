"""Weights in files: what is understood, what is refused, and what is said of it."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.errors import RecordError, UserError
from robustbench_lite.models import (
    build_model,
    load_model,
    load_weights,
    read_weights,
    save_weights,
    state_sha256,
    tensors_sha256,
)


def one_line(error: BaseException, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"


def net(seed: int = 0) -> nn.Module:
    return build_model("small-cnn", n_classes=10, shape=(1, 12, 12), seed=seed)


def mnist_test(shared_data: Path, n: int) -> tuple[Tensor, Tensor]:
    raw = shared_data / "MNIST" / "raw"
    images = np.fromfile(raw / "t10k-images-idx3-ubyte", dtype=np.uint8)[16 : 16 + n * 784]
    labels = np.fromfile(raw / "t10k-labels-idx1-ubyte", dtype=np.uint8)[8 : 8 + n]
    return torch.from_numpy(images.reshape(n, 1, 28, 28).astype(np.float32) / 255), torch.from_numpy(labels).long()


@pytest.mark.parametrize(("file", "least"), [("mnist-fast-at/fgsm.pth", 0.98), ("mnist-certified/mnist.pth", 0.97)])
def test_published_mnist_weights_classify_mnist(
    shared_weights: Path, shared_data: Path, file: str, least: float
) -> None:
    x, y = mnist_test(shared_data, 1000)
    loaded = load_model("small-cnn", n_classes=10, shape=(1, 28, 28), weights=str(shared_weights / file))
    with torch.no_grad():
        assert float((loaded.module(x).argmax(1) == y).float().mean()) >= least
    assert not loaded.module.training
    assert loaded.weights == Path(file).name
    assert loaded.parameters == 16 * 16 + 16 + 32 * 16 * 16 + 32 + 1568 * 100 + 100 + 1010


def test_first_stage_of_a_cascade(shared_weights: Path) -> None:
    path = shared_weights / "cifar10-certified-8px" / "cifar_small_8px.pth"
    stages = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    loaded = load_model("small-cnn", n_classes=10, shape=(3, 32, 32), weights=str(path))
    assert torch.equal(loaded.module.state_dict()["5.weight"], stages[0]["5.weight"])
    assert not torch.equal(stages[0]["5.weight"], stages[1]["5.weight"])


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "net", "ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", [".pt", ".th"])
def test_wrappers_and_prefixes(tmp_path: Path, wrapper: str | None, prefix: str, suffix: str) -> None:
    source, target = net(1), net(2)
    state: Any = OrderedDict((prefix + name, tensor) for name, tensor in source.state_dict().items())
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / f"w{suffix}")
    load_weights(target, read_weights(tmp_path / f"w{suffix}")[0], source="w")
    assert state_sha256(target) == state_sha256(source)


def test_weights_as_trained_come_before_their_average(tmp_path: Path) -> None:
    torch.save({"ema": net(1).state_dict(), "state_dict": net(2).state_dict()}, tmp_path / "w.pt")
    assert tensors_sha256(read_weights(tmp_path / "w.pt")[0]) == state_sha256(net(2))


def test_a_prefix_of_the_network_s_own_stays(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.model = net(seed)

    torch.save(Wrapped(1).state_dict(), tmp_path / "w.pt")
    target = Wrapped(2)
    load_weights(target, read_weights(tmp_path / "w.pt")[0], source="w")
    assert state_sha256(target) == state_sha256(Wrapped(1))


class Touches:
    """Unpickled by a reader that trusts, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("way", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, way: str) -> None:
    mark, path = tmp_path / "touched", tmp_path / "evil.pt"
    held = {"state_dict": net().state_dict(), "more": Touches(mark)}
    if way.startswith("pickle"):
        path.write_bytes(pickle.dumps({"more": Touches(mark)}, protocol=int(way[-1])))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(UserError) as caught:
        load_model("small-cnn", n_classes=10, shape=(1, 12, 12), weights=str(path))
    one_line(caught.value, "evil.pt", "refused", f"{os.mkdir.__module__}.mkdir", "would run code")
    assert not mark.exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "whole.pth")
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "whole.pth")
    one_line(caught.value, "whole.pth", "torch.nn.modules", "torch.save(model.state_dict()")


def truncated(path: Path) -> None:
    torch.save(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"hello world " * 100, b"\0" * 1000, b"\x80\x04K\x01.", None])
def test_corrupt_files_are_named_and_left_alone(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / f"bad{suffix}"
    truncated(path) if content is None else path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        read_weights(path)
    one_line(caught.value, f"bad{suffix}")
    assert path.read_bytes() == before


def test_missing_empty_foreign_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    (tmp_path / "weights.txt").write_text("1 2 3")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "none.pt")
    torch.save([], tmp_path / "list.pt")
    for name, word in [
        ("absent.pt", "no such file"),
        ("empty.pt", "is empty"),
        ("weights.txt", "expected a .safetensors"),
        ("", "is a folder"),
        ("none.pt", "holds no state dict, but epoch, lr"),
        ("list.pt", "holds no state dict, but a list"),
    ]:
        with pytest.raises(UserError) as caught:
            read_weights(tmp_path / name)
        one_line(caught.value, "--weights", word, name)


def test_names_and_shapes_that_do_not_fit() -> None:
    for spec, word in [("mlp", "missing 0.weight, 0.bias, 2.weight and"), ("small-cnn", "0.weight is 16x1x4x4")]:
        module = build_model("small-cnn", n_classes=10, shape=(3, 12, 12))
        tensors = build_model(spec, n_classes=10, shape=(1, 12, 12)).state_dict()
        if spec == "mlp":
            tensors = {f"layer.{name}": tensor for name, tensor in tensors.items()}
        with pytest.raises(UserError) as caught:
            load_weights(module, tensors, source="some.pt")
        one_line(caught.value, "some.pt does not fit", word)


def test_what_is_saved_is_read_with_its_recipe(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "net.safetensors"
    sha256 = save_weights(net(), path, model="small-cnn", recipe={"epochs": 3, "lr": 0.05})
    loaded = load_model("small-cnn", n_classes=10, shape=(1, 12, 12), weights=str(path))
    assert loaded.recipe == {"epochs": 3, "lr": 0.05}
    assert loaded.sha256 == sha256 == state_sha256(net())
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


def test_a_flipped_bit_in_a_saved_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_weights(net(), path)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        read_weights(path)
    one_line(caught.value, "net.safetensors is corrupt")
    assert path.read_bytes() == bytes(content)


def test_safetensors_of_others_need_no_hash(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(net(3).state_dict()), tmp_path / "other.safetensors", metadata={"format": "pt"})
    loaded = load_model("small-cnn", n_classes=10, shape=(1, 12, 12), weights=str(tmp_path / "other.safetensors"))
    assert loaded.sha256 == state_sha256(net(3))
    assert loaded.recipe is None


def test_weights_cannot_be_saved_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        save_weights(net(), tmp_path / "file" / "net.safetensors")
    one_line(caught.value, "cannot write", "net.safetensors")


def test_hash_changes_with_one_bit_and_with_nothing_else() -> None:
    module = net()
    before = state_sha256(module)
    assert state_sha256(net()) == before
    assert state_sha256(module.to(memory_format=torch.channels_last)) == before
    weight = module.get_parameter("7.bias")
    with torch.no_grad():
        weight.view(torch.int32)[4] ^= 1
    assert state_sha256(module) != before


def test_hash_tells_names_types_shapes_and_buffers_apart() -> None:
    zeros = torch.zeros(4)
    others = [{"b": zeros}, {"a": zeros.int()}, {"a": zeros.view(2, 2)}, {"a": zeros, "b": zeros[:0]}]
    assert len({tensors_sha256(t) for t in [{"a": zeros}, *others]}) == 5
    plain, buffered = nn.Flatten(), nn.Flatten()
    buffered.register_buffer("mean", torch.tensor(0.5), persistent=False)
    assert state_sha256(plain) != state_sha256(buffered)
    assert len(state_sha256(nn.Linear(2, 2, dtype=torch.bfloat16))) == 64
