"""An evaluation from a network and images to a result, as one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from .attack import Attack
from .defense import Defense
from .given import (
    device_of,
    given_fit_data,
    given_inputs,
    given_surrogate,
    rounded_down,
)
from .perturbation import make_attack
from .plan import Plan, make_threat
from .plan_run import run_plan
from .result import Result
from .running import Progress


def evaluate(
    model: nn.Module,
    x: Tensor | np.ndarray[Any, Any],
    y: Tensor | np.ndarray[Any, Any],
    *,
    attack: str | Attack | Sequence[str | Attack] = "pgd",
    norm: str | None = None,
    eps: float | Tensor | str | None = None,
    target: str | int | None = None,
    attack_options: Mapping[str, Any] | None = None,
    surrogates: Sequence[nn.Module | str] = (),
    defenses: Sequence[Defense] = (),
    seed: int = 0,
    batch_size: int = 256,
    device: str | None = None,
    precision: str = "float32",
    deterministic: bool = False,
    eot: int | None = None,
    votes: int | None = None,
    stop_on_success: bool = True,
    max_queries: int | None = None,
    checks: bool = True,
    fit_data: tuple[Tensor, Tensor] | None = None,
    name: str | None = None,
    binary: bool = False,
    leaderboard: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Robust accuracy of `model` on images under an attack, or several, with one row and the image of each sample.

    model: pixels (N, C, H, W) in [0, 1] to logits (N, K), alone or in a tuple, dict or object. x: (N, C, H, W) float32
    in [0, 1]. y: (N,) int64. Arrays of numpy do as well as tensors; other forms are understood where they have one
    reading, with a warning (`data.read_images`, `data.read_labels`).
    attack: a name, `FILE.py:NAME`, or an instance of Attack; attack_options: its fields. `transfer:NAME` carries it
    out on `surrogates`, networks or `MODEL[=WEIGHTS]` by name, and judges where it ends on `model`. A list of attacks
    is the worst case over them: an image is robust only where it survives all (`Result.by_attack` has each); their
    options are named `ATTACK.OPTION`, as {"pgd.steps": 50}.
    norm, eps: the threat, eps in pixels of [0, 1] (a number, a fraction as text, or (N,) one a sample);
    default linf, or the first norm of an attack that lacks it, with 8/255 for linf, 0.5 for l2, 12 for l1, 24 for l0.
    target: None, random, next, least-likely, all or a class.
    device: default the model's own. precision: float32, bf16 or f16 for the search; proofs are in float32.
    max_queries: forward passes that a sample may cost; what is seen later counts for nothing.
    checks: after the run small attacks of other kinds look at up to 24 images that were left standing, and may make
    the verdict `unreliable`; False leaves them out.
    fit_data: images and labels, as x and y, that an attack (uap, ...) or a defense (knn, ...) learns from which learns;
    they should be others than x. None: for an attack x itself, up to 512 of them, and the record says so.
    binary: the model gives one number for each image, (N, 1) or (N,): the logit or the probability of class 1.
    leaderboard: folder that receives the run file; None writes nothing.

    A minimal attack (deepfool, ...) yields the nearest adversarial image; `success` says whether it is within eps.

    The model's mode, its parameters, the inputs and the global random state are left as they were found.
    Raises UserError for arguments that do not fit, in one line that says what was expected.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> r = evaluate(net, torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64), attack="fgsm", eps=0.5)
    >>> 0 <= r.robust_accuracy <= r.clean_accuracy <= 1
    True
    """
    if getattr(model, "training", False) and not isinstance(model, fx.GraphModule):
        warnings.warn("model is in training mode; it is evaluated in evaluation mode and then put back", stacklevel=2)
    each = rounded_down(eps) if isinstance(eps, Tensor) and eps.ndim else None
    given, data = given_inputs(model, x, y, defenses, each, name=name, binary=binary)
    learn_from = None if fit_data is None else given_fit_data(*fit_data)
    threat = make_threat(norm, float(each.max()) if each is not None else eps, attack)  # type: ignore[arg-type]
    plan = Plan(
        model=given,
        data=data,
        index=torch.arange(len(data)),
        attack=make_attack(
            attack,
            attack_options,
            threat,
            resolve=each is None,
            surrogates=[given_surrogate(one, data) for one in surrogates],
        ),
        attack_options=dict(attack_options or {}),
        threat=threat,
        defenses=tuple(defenses),
        target=target,
        eps=each,
        seed=seed,
        batch_size=batch_size,
        device=device or device_of(model),
        precision=precision,
        deterministic=deterministic,
        eot=eot,
        votes=votes,
        stop_on_success=stop_on_success,
        max_queries=max_queries,
        checks=checks,
        fit=learn_from,
        learn_from=learn_from,
        keep_images=True,
    )
    result = run_plan(plan, leaderboard=leaderboard, progress=progress)
    for text in result.warnings:
        warnings.warn(text, stacklevel=2)
    return result
