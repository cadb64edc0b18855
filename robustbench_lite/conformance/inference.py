"""The checks of a defense that stands in front of a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..defense import InferenceDefense, wrap_all
from ..errors import UserError
from ..reliability import Word, word_of
from .check import Checks, Failed, plural
from .gradients import check_finite, check_gradient
from .samples import (
    Shape,
    constant_images,
    drawing_as,
    images,
    keys_for,
    random_state,
    random_state_kept,
    small_network,
    touched,
)

if TYPE_CHECKING:
    from ..result import Result

Function = Callable[[Tensor], Tensor]
_COUNT = 8
_CLASSES = 3


def check_inference(defense: InferenceDefense, checks: Checks, shapes: Sequence[Shape]) -> None:
    """Add the checks of an inference-time defense on images of these shapes."""
    if not checks.run("runs", lambda: _runs(defense, shapes)):
        return
    if _transforms(defense):
        checks.run("shape and range", lambda: _shape_and_range(defense, shapes))
    checks.run("input untouched", lambda: _untouched(defense, shapes[0]))
    checks.run("logits", lambda: _logits(defense, shapes))
    if checks.run("randomness", lambda: _randomness(defense, shapes[0])):
        checks.run("rows", lambda: _rows(defense, shapes[0]))
    checks.run("global random state", lambda: _global_state(defense, shapes[0]))
    if defense.differentiable:
        checks.run("gradient", lambda: _gradient(defense, shapes))
    else:
        checks.run("surrogate", lambda: _surrogate(defense, shapes))
    checks.run("evaluation", lambda: _evaluation(defense, shapes[0]))


def _transforms(defense: InferenceDefense) -> bool:
    return type(defense).transform is not InferenceDefense.transform


def _wrap(defense: InferenceDefense, shape: Shape) -> nn.Module:
    network = small_network(defense.seen_shape(shape), classes=_CLASSES)
    x = images(max(4 * _CLASSES, defense.fit_samples), shape)
    wrapped = wrap_all(network, [defense], (x, torch.arange(len(x)) % _CLASSES))
    if not isinstance(wrapped, nn.Module):
        raise Failed(f"wrap must return a torch.nn.Module, got {type(wrapped).__name__}")
    return wrapped.eval()


def _subjects(defense: InferenceDefense, shape: Shape) -> list[tuple[str, Function]]:
    """What is asked: the transform, and the wrapped network where `wrap` is the defense's own."""
    found: list[tuple[str, Function]] = []
    if _transforms(defense):
        found.append(("transform", defense.transform))
    if type(defense).wrap is not InferenceDefense.wrap or defense.fit_samples:
        found.append(("the defended network", _wrap(defense, shape)))
    return found


def _ask(function: Function, x: Tensor, keys: Tensor, *, draw: int = 0, seed: int = 0) -> Tensor:
    with torch.no_grad(), drawing_as(keys, draw=draw, seed=seed):
        return function(x)


def _fixed(function: Function, count: int) -> Function:
    """The function with its random numbers held still, autograd left on."""

    def call(x: Tensor) -> Tensor:
        with drawing_as(keys_for(count)):
            return function(x)

    return call


def _runs(defense: InferenceDefense, shapes: Sequence[Shape]) -> str:
    if not _subjects(defense, shapes[0]):
        raise Failed("it has neither a transform nor a wrap of its own: write transform(self, x)")
    for shape in shapes:
        x = images(2, shape)
        for name, function in _subjects(defense, shape):
            answer = _ask(function, x, keys_for(2))
            if not isinstance(answer, Tensor):
                raise Failed(f"{name} must return a tensor, got {type(answer).__name__}")
    return f"on images of {', '.join('x'.join(map(str, shape)) for shape in shapes)}"


def _shape_and_range(defense: InferenceDefense, shapes: Sequence[Shape]) -> str:
    for shape in shapes:
        many = images(_COUNT, shape)
        for what, x in (("random", many), ("one random", many[:1]), ("constant", constant_images(shape))):
            seen = _ask(defense.transform, x, keys_for(len(x)))
            where = f"for {what} images {tuple(x.shape)}"
            expected = (len(x), *defense.seen_shape(shape))
            if seen.shape != expected:
                rule = "keep the shape" if expected == tuple(x.shape) else f"give the shape {expected} of seen_shape"
                raise Failed(f"transform must {rule}, got {tuple(seen.shape)} {where}")
            if seen.dtype != torch.float32:
                raise Failed(f"transform must keep float32, got {seen.dtype} {where}")
            if not bool(torch.isfinite(seen).all()):
                raise Failed(f"transform made NaN or infinite pixels {where}")
            low, high = float(seen.min()), float(seen.max())
            if low < 0 or high > 1:
                raise Failed(f"transform must stay in [0, 1], got {low:.4g} to {high:.4g} {where}; clamp(0, 1)")
    return "kept for random, single and constant images"


def _untouched(defense: InferenceDefense, shape: Shape) -> str:
    for name, function in _subjects(defense, shape):
        x = images(_COUNT, shape)
        kept = x.clone()
        _ask(function, x, keys_for(_COUNT))
        if not torch.equal(x, kept):
            raise Failed(f"{name} changes the images it is given; work on a copy (x = x.clone(), or no in-place steps)")
    return "the images are left as they were"


def _logits(defense: InferenceDefense, shapes: Sequence[Shape]) -> str:
    for shape in shapes:
        x = images(_COUNT, shape)
        logits = _ask(_wrap(defense, shape), x, keys_for(_COUNT))
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        expected = (_COUNT, _CLASSES + defense.rejects)
        if came != expected:
            also = ", the last of them for rejection" if defense.rejects else ""
            raise Failed(f"the defended network must give {expected} logits{also}, got {came}")
        if not bool(torch.isfinite(logits).all()):
            raise Failed("the defended network gives NaN or infinite logits")
    return "(N, K), finite"


def _randomness(defense: InferenceDefense, shape: Shape) -> str:
    x, keys = images(_COUNT, shape), keys_for(_COUNT)
    drew = False
    for name, function in _subjects(defense, shape):
        first = _ask(function, x, keys)
        if not torch.equal(first, _ask(function, x, keys)):
            raise Failed(
                f"{name} answers differently to equal calls, from a source that no seed controls; "
                "use robustbench_lite.normal_like"
            )
        others = {"seed": _ask(function, x, keys, seed=1), "draw": _ask(function, x, keys, draw=1)}
        by_seed = not torch.equal(first, others["seed"])
        by_draw = not torch.equal(first, others["draw"])
        if not defense.randomized and (by_seed or by_draw):
            raise Failed(f"it states randomized = False, but two draws of {name} differ; state randomized = True")
        if by_seed:
            source = _drawn_from(function, x, keys)
            raise Failed(
                f"{name} draws from {source}: the verdict would depend on the batch size; "
                "use robustbench_lite.normal_like, on tensors with one row an image"
            )
        drew = drew or by_draw
    if defense.randomized and not drew:
        raise Failed("it states randomized = True, but two draws are equal; leave it out, or is its noise zero?")
    return "each image has random numbers of its own" if drew else "none: equal calls, equal answers"


def _drawn_from(function: Function, x: Tensor, keys: Tensor) -> str:
    with random_state_kept(), torch.no_grad(), drawing_as(keys):
        before = random_state()
        function(x)
        moved = touched(before, random_state())
    return " and ".join(moved) or "a global generator"


def _rows(defense: InferenceDefense, shape: Shape) -> str:
    x, keys = images(_COUNT, shape), keys_for(_COUNT)
    order = torch.arange(_COUNT - 1, -1, -1)
    for name, function in _subjects(defense, shape):
        together = _ask(function, x, keys)
        for what, rows in (("alone", torch.tensor([_COUNT - 1])), ("in another order", order)):
            apart = _ask(function, x[rows], keys[rows])
            gap = float((together[rows] - apart).abs().max())
            if not gap <= 1e-5:
                raise Failed(
                    f"{name} mixes images: the answer for an image changes by {gap:.2g} when it is asked {what}; "
                    "take means over the dimensions (1, 2, 3), never over the batch"
                )
        if defense.randomized:
            _own_noise(name, function, x[:1].expand(_COUNT, *shape).clone(), keys)
    return "an image's answer is the same alone, in a batch and in any order"


def _own_noise(name: str, function: Function, same: Tensor, keys: Tensor) -> None:
    answers = _ask(function, same, keys)
    if all(torch.equal(answers[0], answer) for answer in answers[1:]):
        raise Failed(f"{name} gives all images of a batch the same noise; draw it with the images' own shape (N, ...)")


def _global_state(defense: InferenceDefense, shape: Shape) -> str:
    x, keys = images(_COUNT, shape), keys_for(_COUNT)
    subjects = _subjects(defense, shape)
    for name, function in subjects:
        with random_state_kept(), torch.no_grad(), drawing_as(keys):
            before = random_state()
            function(x)
            moved = touched(before, random_state())
        if moved:
            raise Failed(f"{name} moves {' and '.join(moved)}, on which other results depend")
    return "left as it was found"


def _gradient(defense: InferenceDefense, shapes: Sequence[Shape]) -> str:
    detail = ""
    for shape in reversed(shapes):
        for name, function in _subjects(defense, shape):
            try:
                check_finite(_fixed(function, 3), constant_images(shape))
                detail = check_gradient(_fixed(function, _COUNT), images(_COUNT, shape))
            except Failed as error:
                raise Failed(f"it states differentiable = True, but through {name} {error}") from None
    return detail


def _surrogate(defense: InferenceDefense, shapes: Sequence[Shape]) -> str:
    shape = shapes[0]
    x = images(_COUNT, shape)
    network = _wrap(defense, shape)
    if _transforms(defense):
        for size in shapes:
            given = images(2, size)
            stand_in = _fixed(defense.surrogate, 2)(given)
            expected = (2, *defense.seen_shape(size))
            if not isinstance(stand_in, Tensor) or stand_in.shape != expected:
                came = tuple(stand_in.shape) if isinstance(stand_in, Tensor) else type(stand_in).__name__
                rule = "keep the shape" if expected == tuple(given.shape) else "give the shape of seen_shape,"
                raise Failed(f"surrogate must {rule} {expected}, got {came}")
        try:
            check_finite(_fixed(defense.surrogate, 3), constant_images(shape))
            check_gradient(_fixed(defense.surrogate, _COUNT), x)
        except Failed as error:
            text = str(error).split("; state differentiable")[0]
            raise Failed(f"the surrogate must be differentiable, but through it {text}") from None
    at = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = _fixed(network, _COUNT)(at)
        gradient = torch.autograd.grad(logits[:, 0].sum(), at, allow_unused=True)[0] if logits.requires_grad else None
    if gradient is None or not bool(gradient.flatten(1).any(1).all()):
        raise Failed("no gradient comes back through the defended network; in wrap, go through see_through")
    return _closeness(defense, x)


def _closeness(defense: InferenceDefense, x: Tensor) -> str:
    """How near the surrogate is, and a hint where the defense could have stated differentiable = True."""
    if not _transforms(defense):
        return "a gradient comes back"
    with torch.no_grad():
        gap = _fixed(defense.surrogate, len(x))(x) - _fixed(defense.transform, len(x))(x)
    detail = f"differentiable, on average {float(gap.abs().mean()):.2g} from the transform"
    try:
        check_gradient(_fixed(defense.transform, len(x)), x)
    except Exception:
        return detail
    return f"{detail}; hint: the transform's own gradient is right, so state differentiable = True for a sharper attack"


def _evaluation(defense: InferenceDefense, shape: Shape) -> str:
    from ..evaluation import evaluate

    x, network = images(_COUNT, shape), small_network(defense.seen_shape(shape), classes=_CLASSES)
    y = _ask(_wrap(defense, shape), x, keys_for(_COUNT))[:, :_CLASSES].argmax(1)
    known = images(max(4 * _CLASSES, defense.fit_samples), shape)

    def evaluated(y: Tensor) -> Result:
        return evaluate(
            *(network, x, y),
            defenses=[defense],
            attack_options={"steps": 3},
            eps=8 / 255,
            checks=False,
            fit_data=(known, torch.arange(len(known)) % _CLASSES),
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = evaluated(y)
            if word_of(result.verdict) is Word.INVALID:
                # With other random numbers the small network guesses: labels of this run's numbers are the same again.
                result = evaluated(torch.tensor(result.samples["prediction"].to_numpy()))
        except UserError as error:
            raise Failed(f"robustbench_lite.evaluate: {error}") from error
    if word_of(result.verdict) is not Word.UNCHECKED:
        raise Failed(f"robustbench_lite.evaluate says {result.verdict}")
    return f"evaluated, {plural(result.backwards, 'gradient')} asked, model checks passed"
