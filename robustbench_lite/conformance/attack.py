"""The checks of an attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..attack import Attack, Batch
from ..errors import AccessError, UserError
from ..rows import to_tensors
from ..streams import Stream, content_hashes
from ..threat import BALLS, Threat
from .apart import check_limit, check_order, check_refill, check_resume, check_targets
from .check import Checks, Failed, plural
from .driver import COUNT, FITTED, MOST, SAME, STEPS, Driver, Running, difference, driver_of, samples_of, threat_of
from .samples import (
    Counted,
    Saturated,
    Shape,
    images,
    linear_network,
    random_state,
    random_state_kept,
    touched,
)


def check_behaviour(attack: Attack, checks: Checks, shapes: Sequence[Shape]) -> None:
    """Add the checks of what an attack does, on images of these shapes."""
    driver = driver_of(attack, attack.norms[0], shapes[0])
    if not checks.run("access", lambda: _access(attack, shapes[0])):
        return
    if attack.learns:
        checks.run("learning", lambda: _learning(attack, shapes))
    checks.run("ball and box", lambda: _ball(attack, shapes))
    checks.run("finite", lambda: _finite(attack, shapes[0]))
    checks.run("input untouched", lambda: _untouched(driver, shapes[0]))
    if not checks.run("state", lambda: _state(driver, shapes[0])):
        return
    checks.run("random numbers", lambda: _randomness(driver, shapes[0]))
    checks.run("rows", lambda: check_order(attack, shapes[0]))
    checks.run("rows at different steps", lambda: check_refill(driver, shapes[0]))
    checks.run("counts", lambda: _counts(attack, shapes[0]))
    checks.run("limit", lambda: check_limit(attack, shapes[0]))
    checks.run("resume", lambda: check_resume(attack, shapes[0]))
    if attack.targeted:
        checks.run("targets", lambda: check_targets(attack, shapes[0]))
    checks.run("success", lambda: _success(attack, shapes[0]))
    checks.run("hyperparameters kept", lambda: _kept(attack, shapes[0]))


def _access(attack: Attack, shape: Shape) -> str:
    asked: set[str] = set()
    for norm in attack.norms:
        driver = driver_of(attack, norm, shape)
        if not isinstance(driver.attack, type(attack)):
            raise Failed(f"resolve must return a {type(attack).__name__}, got {type(driver.attack).__name__}")
        try:
            driver.run(driver.batch(*samples_of(driver, shape)), steps=STEPS)
        except AccessError as error:
            raise Failed(f"{error}; declare it in `access`, or do with less") from error
        asked |= driver.asked
    need = next((level for level in ("gradient", "score", "label") if level in asked), None)
    if need is None:
        return f"declares {attack.access}, asks the network nothing"
    if need != attack.access:
        return f'declares {attack.access}; hint: it asked no more than {need}, so access = "{need}" is enough'
    return f"declares {attack.access} and asks no more"


def _learning(attack: Attack, shapes: Sequence[Shape]) -> str:
    """`fit` gives finite tensors, the same at the second time, counted, and leaves all else as it was."""
    found: list[str] = []
    for shape in shapes:
        before = driver_of(attack, attack.norms[0], shape, alone=False)
        with random_state_kept():
            torch.default_generator.manual_seed(0)
            state = random_state()
            described, counted = _described(before.attack), Counted(before.model)
            first, second = (
                Driver(before.attack, before.threat, model, 3).fit(shape) for model in (before.model, counted)
            )
            if moved := touched(state, random_state()):
                raise Failed(f"fit moves {' and '.join(moved)}, on which other results depend; use batch.stream")
        changed = [name for name, value in _described(before.attack).items() if described.get(name) != value]
        if changed:
            raise Failed(f"fit remembers something in self.{changed[0]}; everything belongs into what it returns")
        if (second.forwards, second.backwards) != (counted.forwards - FITTED, counted.backwards):
            raise Failed(
                f"fit told of {second.forwards} forward and {second.backwards} backward passes, the network saw "
                f"{counted.forwards - FITTED} and {counted.backwards}"
            )
        names = sorted(first.learned.keys() | second.learned.keys())
        for name in names:
            one, other = first.learned.get(name), second.learned.get(name)
            if one is None or other is None or not torch.equal(one, other):
                raise Failed(f"fit learns another {name!r} from the same images; use batch.stream alone")
            if not bool(torch.isfinite(one).all()):
                raise Failed(f"fit learned NaN or infinite numbers: {name!r}")
        found = [f"{name} {tuple(first.learned[name].shape)}" for name in names]
    return f"the same from the same images: {', '.join(found) or 'nothing'}"


def _ball(attack: Attack, shapes: Sequence[Shape]) -> str:
    refused = ""
    for norm in attack.norms:
        for shape in shapes:
            for classes in (2, 3):
                driver = driver_of(attack, norm, shape, classes=classes, alone=False)
                x, y = samples_of(driver, shape, count=4)
                # Samples may have balls of different sizes; one of size zero holds the image alone.
                share = torch.tensor([1.0, 0.5, 0.25, 0.0])
                eps = driver.threat.each(4) * (torch.ones(4) if attack.own_limits else share)
                try:
                    trace = driver.run(driver.batch(x, y, eps=eps), steps=STEPS)
                except UserError as error:
                    # The images of the first shape are what most checks use; others an attack may refuse.
                    if shape == shapes[0]:
                        raise
                    refused = f"; refused: {error}"
                    break
                for step, running in enumerate(trace):
                    _inside(running, f"at step {step} ({norm}, {classes} classes, images {shape})")
    return f"at every step, for {', '.join(attack.norms)}, 2 and 3 classes, one eps a sample{refused}"


def _inside(running: Running, where: str) -> None:
    ball, candidate = running.batch.ball, running.state.candidate
    if candidate.dtype != torch.float32:
        raise Failed(f"state.candidate must be float32, got {candidate.dtype} {where}")
    if not bool(torch.isfinite(candidate).all()):
        raise Failed(f"state.candidate has NaN or infinite pixels {where}")
    low, high = float(candidate.min()), float(candidate.max())
    if low < -SAME or high > 1 + SAME:
        raise Failed(f"the candidate leaves the box [0, 1], {low:.4g} to {high:.4g} {where}; use batch.ball.project")
    beyond = float((ball.distance(candidate) - ball.eps.double() * (1 + 1e-6)).max())
    if beyond > SAME:
        raise Failed(f"the candidate leaves the ball by {beyond:.2g} {where}; use batch.ball.project")


def _finite(attack: Attack, shape: Shape) -> str:
    for factor, what in ((0.0, "whose gradient is zero"), (1e5, "with logits in the thousands")):
        for norm in attack.norms:
            driver = driver_of(attack, norm, shape, alone=False)
            x, y = samples_of(driver, shape)
            driver = Driver(attack, threat_of(attack, norm), Saturated(driver.model, factor), 3)
            last = driver.start(driver.batch(x, y))
            for _ in range(min(STEPS, driver.attack.length)):
                last = driver.step(last)
                if not bool(torch.isfinite(last.state.candidate).all()):
                    raise Failed(f"NaN or infinite pixels on a network {what} ({norm}); look for a division by zero")
    return "also where the gradient is zero and where logits are large"


def _untouched(driver: Driver, shape: Shape) -> str:
    x, y = samples_of(driver, shape)
    targets = (y + 1) % 3 if driver.attack.targeted else None
    batch = driver.batch(x, y, targets=targets)
    driver = dataclasses.replace(driver, isolate=False)
    before = {name: tensor.clone() for name, tensor in to_tensors(batch).items()}
    driver.run(batch, steps=STEPS)
    for name, tensor in to_tensors(batch).items():
        if not torch.equal(tensor, before[name]):
            raise Failed(f"it changes batch.{name} in place; work on a copy (batch.ball.x.clone())")
    return "the batch is left as it was"


def _state(driver: Driver, shape: Shape) -> str:
    x, y = samples_of(driver, shape)
    names: set[str] = set()
    for running in driver.run(driver.batch(x, y), steps=2):
        _only_rows(running.state, len(y), "state")
        names |= set(to_tensors(running.state))
    return f"{', '.join(sorted(names))}: one row a sample"


def _only_rows(value: Any, count: int, name: str) -> None:
    if isinstance(value, Tensor):
        if value.ndim < 1 or len(value) != count:
            raise Failed(f"{name} must have one row for each of {count} samples, got shape {tuple(value.shape)}")
        if value.requires_grad:
            raise Failed(f"{name} carries an autograd graph; detach it")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _only_rows(getattr(value, field.name), count, f"{name}.{field.name}")
    elif value is not None:
        raise Failed(
            f"{name} is a {type(value).__name__}; a state holds tensors with one row a sample and nothing else "
            "(batch.step counts the steps)"
        )


def _randomness(driver: Driver, shape: Shape) -> str:
    x, y = samples_of(driver, shape)
    with random_state_kept():
        torch.default_generator.manual_seed(0)
        before = random_state()
        first = driver.run(driver.batch(x, y), steps=STEPS)
        moved = touched(before, random_state())
        torch.default_generator.manual_seed(1)
        again = driver.run(driver.batch(x, y), steps=STEPS)
    if moved:
        raise Failed(
            f"it draws from {' and '.join(moved)}: the verdict would depend on the batch size; "
            "use batch.stream.uniform, .normal or .integers"
        )
    if any(difference(a, b) > 0 for a, b in zip(first, again, strict=True)):
        raise Failed(
            "the same seed gives another result: it draws from a source that no seed controls, or remembers "
            "an earlier run; use batch.stream, and keep everything in the state"
        )
    other = driver.run(driver.batch(x, y, seed=1), steps=STEPS)
    drew = any(difference(a, b) > 0 for a, b in zip(first, other, strict=True))
    if not drew and driver.attack.attempts > 1:
        if not _by_attempt(driver, driver.batch(x, y), first):
            raise Failed(
                f"it states {driver.attack.attempts} attempts, but neither draws nor looks at batch.attempt: "
                "all of them would be the same"
            )
        return "it draws none; its attempts differ by their number"
    return "same seed, same result; another seed, another result" if drew else "it draws none"


def _by_attempt(driver: Driver, batch: Batch, first: list[Running]) -> bool:
    """Whether some of the next attempts, with the same random numbers, are another than the first."""
    for number in range(1, min(driver.attack.attempts, 4)):
        trace = driver.run(dataclasses.replace(batch, attempt=torch.full_like(batch.y, number)), steps=STEPS)
        if any(difference(a, b) > 0 for a, b in zip(first, trace, strict=False)):
            return True
    return False


def _counts(attack: Attack, shape: Shape) -> str:
    driver = driver_of(attack, attack.norms[0], shape)
    counted = Counted(driver.model)
    driver = Driver(attack, driver.threat, counted, 3)
    x = images(COUNT, shape)
    batch = driver.batch(x, driver.labels(x))
    counted.forwards = counted.backwards = 0
    last = driver.run(batch, steps=STEPS)[-1]
    for what, told, seen in (
        ("forward", int(last.forwards.sum()), counted.forwards),
        ("backward", int(last.backwards.sum()), counted.backwards),
    ):
        if told != seen:
            raise Failed(
                f"the query counted {told} {what} passes, the network saw {seen}: it reaches the network past the query"
            )
    return f"{counted.forwards} forward and {counted.backwards} backward passes, all of them seen by the query"


def _success(attack: Attack, shape: Shape) -> str:
    """On one linear layer, with balls in which noise already fools a share of the images."""
    if attack.own_limits:
        return "limits of its own: noise of the same size is no measure of it"
    rates = []
    for norm in attack.norms:
        network = linear_network(shape)
        x = images(64, shape)
        y = network(x).argmax(1)
        threat, control = _fair(attack, norm, network, x, y)
        driver = Driver(attack, threat, network, 3)
        last = driver.run(driver.batch(x, y), steps=MOST)[-1]
        rate = float(driver.success(last).double().mean())
        rates.append(f"{norm} {rate:.0%} (noise {control:.0%})")
        # Whoever follows a gradient must do better than chance; who asks nothing is chance itself.
        least = control + 0.2 if attack.access == "gradient" else control - 0.15
        if int(last.forwards.sum()) and rate < least:
            raise Failed(f"it hardly fools one linear layer: {rates[-1]} at eps {threat.eps:.3g}; is a sign wrong?")
    return f"on one linear layer: {', '.join(rates)}"


def _fair(attack: Attack, norm: str, network: nn.Module, x: Tensor, y: Tensor) -> tuple[Threat, float]:
    """The threat at which noise fools three tenths of the images, as far as the box allows, and its rate."""
    threat = threat_of(attack, norm)
    while True:
        noise = threat.around(x).random(Stream.of(content_hashes(x), seed=0).child("noise"))
        control = float((network(noise).argmax(1) != y).double().mean())
        larger = threat.eps * 1.5 if norm != "l0" else round(threat.eps * 1.5)
        if control >= 0.3 or (norm == "linf" and larger > 0.5) or larger > x[0].numel():
            return threat, control
        threat = threat.with_eps(larger)


def _kept(attack: Attack, shape: Shape) -> str:
    driver = driver_of(attack, attack.norms[0], shape)
    before = _described(driver.attack)
    driver.run(driver.batch(*samples_of(driver, shape)), steps=2)
    changed = [name for name, value in _described(driver.attack).items() if before.get(name) != value]
    if changed:
        raise Failed(f"it remembers something in self.{changed[0]}; everything belongs into the state")
    return f"{plural(len(before), 'option')}, none changed by a run"


def _described(attack: Attack) -> dict[str, str]:
    cached = {name for c in type(attack).__mro__ for name, v in vars(c).items() if isinstance(v, cached_property)}
    return {name: repr(value) for name, value in vars(attack).items() if name not in cached}


def check_declared(attack: Attack) -> str:
    """One line on what an attack declares; raises Failed for what no engine could use."""
    cls = type(attack)
    if attack.access not in ("gradient", "score", "label"):
        raise Failed(f"access must be gradient, score or label, got {attack.access!r}")
    if not isinstance(attack.norms, tuple) or not attack.norms:
        raise Failed(f'norms must be a tuple such as ("linf", "l2"), got {attack.norms!r}')
    unknown = [norm for norm in attack.norms if norm not in BALLS]
    if unknown:
        raise Failed(f"norms: unknown {unknown[0]!r}; known: {', '.join(BALLS)}")
    if attack.own_limits and attack.norms != ("linf",):
        raise Failed(f'norms must be ("linf",) of an attack with limits of its own, got {attack.norms!r}')
    for method in ("start", "step"):
        if getattr(cls, method) is getattr(Attack, method):
            raise Failed(f"{method} is not written")
    resolved = attack.resolve(threat_of(attack, attack.norms[0]))
    for name, least in (("length", 0), ("attempts", 1)):
        value = getattr(resolved, name)
        if not isinstance(value, int) or value < least:
            raise Failed(f"{name} must be a whole number >= {least}, got {value!r}")
    return f"{plural(resolved.length, 'step')}, {plural(resolved.attempts, 'attempt')}, {', '.join(attack.norms)}"
