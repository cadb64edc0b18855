"""`rbl evaluate` given what cannot work: one line that names the argument, and nothing written."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from .harness import Rbl, listing

MISTAKES = [
    # unknown names, with the close ones
    ("--attack pdg", "--attack: unknown name 'pdg'; did you mean pgd?"),
    ("--defense bitdepth", "--defense: unknown name 'bitdepth'; did you mean bit-depth?"),
    ("--dataset digit", "--dataset: unknown name 'digit'; did you mean digits?"),
    ("--model smal-cnn", "--model: unknown name 'smal-cnn'; did you mean small-cnn"),
    ("--norm linff", "--norm: unknown name 'linff'; did you mean linf?"),
    ("--loss cee", "--loss: unknown name 'cee'; did you mean ce?"),
    ("--precision fp16", "--precision: unknown name 'fp16'; did you mean f16"),
    ("--split dev", "--split: unknown name 'dev'; known: test, train"),
    ("--attack-option step=3", "--attack-option step: pgd has no option 'step'; did you mean steps"),
    ("--attack fgsm --steps 3", "--steps: fgsm has no option 'steps'"),
    ("--defense bit-depth --defense-option bit=3", "--defense-option: unknown option 'bit'; did you mean bits?"),
    ("--defense bit-depth --defense-option bit-depth.bit=3", "bit-depth has no option 'bit'; did you mean bits?"),
    ("--defense bit-depth --defense-option noise.sigma=3", "--defense-option: no --defense 'noise'; known: bit-depth"),
    ("--defense-option bits=3", "--defense-option: unknown option 'bits'; no --defense"),
    # eps
    ("--eps -0.1", "--eps must be >= 0, got -0.1"),
    ("--eps=nan", "--eps must be a finite number, got 'nan'"),
    ("--eps inf", "--eps must be a finite number, got 'inf'"),
    ("--eps 8", "--eps must be at most 1, the width of the box of pixels, for linf, got 8; eps counts in pixels"),
    ("--eps 8.1 --norm l2", "--eps must be at most 8, the diameter of the box of pixels, got 8.1"),
    ("--eps 8/0", "--eps must be a number or a fraction such as 8/255, got '8/0'"),
    ("--eps eight", "--eps must be a number or a fraction such as 8/255, got 'eight'"),
    # other numbers
    ("--steps 0", "--steps must be >= 1, got 0"),
    ("--steps 2.5", "--steps must be a whole number, got '2.5'"),
    ("--steps 1e30", "--steps must be below 2**63, got '1e30'"),
    ("--attack-option steps=many", "--attack-option steps must be a whole number"),
    ("--step-size 0", "--step-size must be > 0, got 0"),
    ("--step-size nan", "--step-size must be a finite number"),
    ("--restarts 0", "--restarts must be >= 1, got 0"),
    ("--restarts 2 --attack-option random_start=no", "--restarts must be 1 without a random start, got 2"),
    ("--restarts 2 --attack-option restarts=3", "--restarts: restarts is given twice"),
    ("--attack-option steps=1 --attack-option steps=2", "--attack-option: steps is given twice"),
    ("--attack-option steps", "--attack-option must be KEY=VALUE, got 'steps'"),
    ("--defense bit-depth --defense-option bits=99", "--defense-option bits must be in 1..16, got 99"),
    ("--defense bit-depth --defense-option bits", "--defense-option must be KEY=VALUE, got 'bits'"),
    ("--samples 0", "--samples must be in 1..24, the images that there are, got 0"),
    ("--samples 25", "--samples must be in 1..24, the images that there are, got 25"),
    ("--batch-size 0", "--batch-size must be >= 1, got 0"),
    ("--eot 0", "--eot must be >= 1, got 0"),
    ("--votes -1", "--votes must be >= 1, got -1"),
    ("--seed -1", "--seed must be in 0..9223372036854775807, got -1"),
    ("--seed 99999999999999999999", "--seed must be in 0..9223372036854775807, got 99999999999999999999"),
    ("--workers -1", "--workers must be at least 0, got -1"),
    ("--image-size 0", "--image-size must be at least 1, got 0"),
    ("--image-size 16", "--image-size: the images of npz:ok.npz are 8x8, got 16"),
    ("--epochs 0", "--epochs must be at least 1, got 0"),
    # shards
    ("--shard 0/4", "--shard must be I/N with 1 <= I <= N, got '0/4'"),
    ("--shard 5/4", "--shard must be I/N with 1 <= I <= N, got '5/4'"),
    ("--shard x", "--shard must be I/N with 1 <= I <= N, got 'x'"),
    ("--shard ²/4", "--shard must be I/N with 1 <= I <= N, got '²/4'"),
    ("--shard /4", "--shard must be I/N with 1 <= I <= N, got '/4'"),
    ("--shard 25/25", "--shard must be I/N with N at most 24, the images of the run, got N = 25"),
    # targets
    ("--target 4", "--target must be a class in 0..3, got 4"),
    ("--target -1", "--target must be a class in 0..3, got -1"),
    (
        "--target randm",
        "--target must be random, next, least-likely, all or a class, got 'randm'; did you mean random?",
    ),
    # devices
    ("--device gpu", "--device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    ("--device meta", "--device must be auto, cpu, cuda or cuda:N, got 'meta'"),
    # where results go
    ("--save-examples out", "--save-examples must be a path that ends in .npz, got 'out'"),
    ("--save-examples nets.py/out.npz", "--save-examples: cannot write 'nets.py/out.npz'"),
    ("--figure out.jpg", "--figure must be a path that ends in .png, got 'out.jpg'"),
    ("--figure nets.py/out.png", "--figure: cannot write 'nets.py/out.png'"),
    ("--leaderboard nets.py", "--leaderboard must be a folder that can be written, got 'nets.py' (Not a directory)"),
    ("--leaderboard nets.py/lb", "--leaderboard must be a folder that can be written, got 'nets.py/lb'"),
    # networks
    ("--model nets.py", "--model: expected FILE.py:NAME, got 'nets.py'; say which name in the file, nets.py:NAME"),
    ("--model net.py:make", "--model: no such file 'net.py'; expected FILE.py:NAME"),
    ("--model nets.py:mak", "--model nets.py: unknown name 'mak'; did you mean make?"),
    ("--model no.such.module:make", "--model: unknown name 'no.such.module:make'"),
    ("--model nets.py:not_callable", "--model: nets.py:not_callable is a int, expected a callable"),
    ("--model nets.py:number", "--model: nets.py:number returned a int, expected a torch.nn.Module"),
    ("--model nets.py:wants_a_path", "--model: nets.py:wants_a_path needs path"),
    ("--model nets.py:seven_classes", "--model: expected logits of shape (16, 4), one for each class, got (16, 7)"),
    ("--model nets.py:Scores", "--model: expected logits of shape (16, 4), one for each class, got (16,)"),
    ("--model nets.py:NotANumber", "--model: expected finite logits, got NaN or infinity for 16 of 16 images"),
    # weights
    ("--weights nowhere.pth", "--weights: no such file 'nowhere.pth'"),
    ("--weights nets.py", "--weights: expected a .safetensors, .pt, .pth or .th file, got 'nets.py'"),
    ("--weights pretrained", "--weights pretrained: nets.py:make is a factory"),
    ("--model mlp --weights pretrained", "--weights pretrained: mlp has none"),
    # data
    ("--dataset npz:nowhere.npz", "--dataset: no such file or folder 'nowhere.npz'"),
    ("--dataset npz", "--dataset: npz needs a path, npz:PATH"),
    ("--dataset ok.npz", "--dataset: 'ok.npz' is a path; say what it is, e.g. npz:ok.npz"),
    ("--dataset parquet:nets.py", "--dataset: nets.py is not a readable Parquet file"),
    ("--model mlp", "--dataset: ok.npz must hold the array 'train_images' for split train"),
    ("--dataset mnist --data-dir .", "--dataset: mnist is not in"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_a_mistake_is_one_line_and_writes_nothing(arguments: str, told: str, evaluate: Rbl, folder: Path) -> None:
    before = listing(folder)
    error = evaluate(*arguments.split()).error
    assert error.startswith("--") and told in error
    assert listing(folder) == before
    assert not (folder / "lb").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, and may be asked for")
def test_a_device_that_is_not_here(evaluate: Rbl) -> None:
    assert evaluate("--device", "cuda").error.startswith("--device: 'cuda' cannot be used here")


IMAGES = np.random.default_rng(0).random((6, 1, 8, 8), dtype=np.float32)
LABELS = np.arange(6) % 4


def _broken(value: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    images = IMAGES.copy()
    images[3, 0, 2, 2] = value
    return images


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"labels": LABELS, "n_classes": 3}, "labels must be in 0..2 for 3 classes, got 3"),
        ({"labels": LABELS - 1}, "labels must not be negative, got -1"),
        ({"labels": LABELS + 0.5}, "labels must be whole numbers, got 0.5"),
        ({"labels": LABELS[:5]}, "labels must be (6,), one for each image, got (5,)"),
        ({"labels": LABELS * 0, "n_classes": 1}, "expected labels of at least 2 classes, got 1"),
        ({"images": _broken(float("nan"))}, "images must be in [0, 1], got NaN or infinity"),
        ({"images": _broken(float("inf"))}, "images must be in [0, 1], got NaN or infinity"),
        ({"images": _broken(1.5)}, "images must be in [0, 1], got values from"),
        ({"images": _broken(-0.1)}, "images must be in [0, 1], got values from -0.1 to"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images must hold at least one image"),
        ({"images": np.array([object()] * 6)}, "a pickled object array, which is not loaded"),
    ],
)
def test_data_that_cannot_be_is_one_line(arrays: dict[str, object], told: str, evaluate: Rbl) -> None:
    np.savez("bad.npz", **{"images": IMAGES, "labels": LABELS, **arrays})  # type: ignore[arg-type]
    error = evaluate("--dataset", "npz:bad.npz").error
    assert error.startswith("--dataset: ") and told in error


@pytest.mark.parametrize("damage", ["empty", "junk", "half", "flipped", "no images"])
def test_a_data_file_that_is_broken_is_one_line(damage: str, evaluate: Rbl, folder: Path) -> None:
    whole = (folder / "ok.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[300] ^= 255
    texts = {"empty": b"", "junk": b"hello world", "half": whole[: len(whole) // 2], "flipped": bytes(flipped)}
    if damage == "no images":
        np.savez("bad.npz", labels=LABELS)
    else:
        (folder / "bad.npz").write_bytes(texts[damage])
    assert evaluate("--dataset", "npz:bad.npz").error.startswith("--dataset: bad.npz")
    assert not (folder / "lb").exists()


class _Evil:
    """What unpickling it would do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize("how", ["torch.save", "in a state dict", "bare pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(how: str, evaluate: Rbl, folder: Path) -> None:
    if how == "bare pickle":
        (folder / "evil.pth").write_bytes(pickle.dumps(_Evil()))
    else:
        torch.save({"state_dict": _Evil()} if how == "in a state dict" else _Evil(), "evil.pth")
    error = evaluate("--weights", "evil.pth").error
    assert error.startswith("--weights: evil.pth is refused: it wants posix.system")
    assert not (folder / "PWNED").exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("empty.pth", "is empty"),
        ("text.pth", "no file that torch.save wrote, or is corrupt"),
        ("half.pth", "no file that torch.save wrote, or is corrupt"),
        ("half.safetensors", "no safetensors file or is corrupt"),
        ("whole.pth", "is refused: it wants torch.nn.modules.linear.Linear"),
        ("list.pth", "holds no state dict, but a list"),
        ("misfit.pth", "does not fit the model: missing 1.weight"),
    ],
)
def test_weights_that_do_not_do_are_one_line(damage: str, told: str, evaluate: Rbl, folder: Path) -> None:
    from safetensors.torch import save_file

    layer = nn.Linear(3, 3)
    things = {"whole.pth": layer, "list.pth": [1, 2], "misfit.pth": layer.state_dict(), "half.pth": layer.state_dict()}
    if damage in things:
        torch.save(things[damage], damage)
    elif damage == "half.safetensors":
        save_file(layer.state_dict(), damage)
    else:
        (folder / damage).write_text("hello" if damage == "text.pth" else "")
    if damage.startswith("half"):
        content = (folder / damage).read_bytes()
        (folder / damage).write_bytes(content[: len(content) // 2])
    error = evaluate("--weights", damage).error
    assert error.startswith(f"--weights: {damage}") and told in error
    assert not (folder / "lb").exists()


def test_weights_of_nan_are_told(evaluate: Rbl) -> None:
    from .harness import network

    torch.save({name: tensor * float("nan") for name, tensor in network().state_dict().items()}, "nan.pth")
    assert evaluate("--weights", "nan.pth").error.startswith("--model: expected finite logits, got NaN")


@pytest.mark.parametrize("factory", ["breaks", "raises", "leaves"])
def test_a_network_that_raises_shows_its_own_traceback(
    factory: str, evaluate: Rbl, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBL_DEBUG", "1")
    said = evaluate("--model", f"nets.py:{factory}")
    assert 'nets.py", line' in said.err and said.out == ""
    words = {"breaks": "RuntimeError: my own fault", "raises": "KeyError", "leaves": "SystemExit: bye"}[factory]
    assert words in said.last_line
    assert not (folder / "lb").exists()


def test_a_network_that_raises_later_leaves_no_half_run(evaluate: Rbl, folder: Path) -> None:
    said = evaluate("--model", "nets.py:later", "--steps", "50")
    assert "ValueError: after a while" in said.last_line
    assert listing(folder / "lb") == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def make(:\n", "SyntaxError"),
        ("import nothing_like_this\n", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("option", ["--model", "--attack", "--defense"])
def test_a_file_that_does_not_import_shows_its_own_traceback(
    option: str, text: str, words: str, evaluate: Rbl, folder: Path
) -> None:
    (folder / "broken.py").write_text(text)
    said = evaluate(option, "broken.py:Thing")
    assert words in said.last_line and "broken.py" in said.err
    assert not (folder / "lb").exists()


@pytest.mark.parametrize("option", ["--attack", "--defense"])
def test_a_class_of_the_wrong_kind_is_one_line(option: str, evaluate: Rbl) -> None:
    error = evaluate(option, "nets.py:Scores").error
    assert error.startswith(f"{option}: nets.py:Scores is n")


def test_pretrained_without_a_network_is_one_line(
    evaluate: Rbl, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.savez("thousand.npz", images=images, labels=[0, 1], n_classes=1000)

    def refused(*arguments: object, **options: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    said = evaluate("--model", "torchvision:resnet18", "--weights", "pretrained", "--dataset", "npz:thousand.npz")
    assert said.last_line.startswith("--weights pretrained: the weights of torchvision:resnet18 could not be had")
    assert said.out == "" and "Traceback" not in said.err
    assert not (folder / "lb").exists()


def test_a_mistake_is_told_before_a_training(rbl: Rbl, folder: Path) -> None:
    for arguments in ("--precision fp16", "--target 10", "--batch-size 0", "--leaderboard nets.py", "--shard 400/400"):
        error = rbl("evaluate", "--model", "mlp", "--dataset", "digits", *arguments.split())
        assert "training" not in error.remarks
        assert error.error.startswith(arguments.split()[0])
