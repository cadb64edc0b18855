"""An attack on one batch with nothing judged or recorded: what training needs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .attack import Attack, Batch, ball_of
from .errors import UserError, unknown_name
from .fitting import FitData, fit_attack, needs_fit
from .network import Network, frozen
from .options import configure, option_types, owner_of
from .query import Query
from .streams import Stream
from .surrogate import PREFIX, Surrogate, Transfer
from .threat import Threat
from .worst_case import WorstCase, attack_class, numbered


def make_attack(
    spec: str | Attack | Sequence[str | Attack],
    options: Mapping[str, Any] | None,
    threat: Threat,
    *,
    resolve: bool = True,
    surrogates: Sequence[Surrogate] = (),
) -> Attack:
    """The attack that `spec` names with these options, its defaults filled in for the threat.

    Several names, or instances, are the worst case over all of them; their options are then named `ATTACK.OPTION`, or
    `OPTION` alone where only one of them has it.
    resolve=False leaves defaults that depend on eps open, for samples that each have an eps of their own.
    surrogates: what `transfer:NAME` attacks in place of the network under test.
    Raises UserError for an unknown name or option, for a norm that the attack does not have, and for a transfer
    without a surrogate or the reverse.
    """
    if not isinstance(spec, str | Attack) and isinstance(spec, list | tuple):
        return _several(spec, options, threat, resolve=resolve, surrogates=surrogates)
    if isinstance(spec, str) and spec.startswith(PREFIX):
        _check_types(spec, options)
        if spec.startswith(PREFIX * 2):
            raise UserError(f"attack {spec}: a transfer of a transfer is one; give {spec.removeprefix(PREFIX)}")
        own = dict(options or {})
        ensemble = own.pop("ensemble", "logits")
        inner = make_attack(spec.removeprefix(PREFIX), own, threat, resolve=resolve)
        return Transfer(inner, tuple(surrogates), ensemble)
    if surrogates:
        name = spec if isinstance(spec, str) else getattr(spec, "name", spec)
        raise UserError(f"surrogate: attack {name} attacks the model itself; give {PREFIX}{name}, or no surrogate")
    if isinstance(spec, Attack):
        if options:
            raise UserError("attack_options: give them to the attack itself, which is an instance already")
        attack = spec
    else:
        _check_types(spec, options)
        assert isinstance(spec, str)
        attack = configure(_class_of(spec), options, argument="attack option")
    if threat.norm not in attack.norms:
        raise unknown_name(f"norm of attack {attack.name}", threat.norm, attack.norms)
    return attack.resolve(threat) if resolve else attack


def _class_of(spec: str) -> type[Attack]:
    cls = attack_class(spec)
    if not (isinstance(cls, type) and issubclass(cls, Attack)):
        raise UserError(f"attack: {spec} is no subclass of robustbench_lite.Attack; see rbl attacks new")
    return cls


def _several(
    specs: Sequence[str | Attack],
    options: Mapping[str, Any] | None,
    threat: Threat,
    *,
    resolve: bool,
    surrogates: Sequence[Surrogate],
) -> Attack:
    """The worst case over several attacks; of one, that attack."""
    if not specs:
        raise UserError("attack: expected at least one, got an empty list")
    if len(specs) == 1:
        return make_attack(specs[0], options, threat, resolve=resolve, surrogates=surrogates)
    for spec in specs:
        if not isinstance(spec, Attack):
            _check_types(spec, options)
    carried = [isinstance(spec, str) and spec.startswith(PREFIX) for spec in specs]
    if surrogates and not any(carried):
        raise UserError(f"surrogate: none of the attacks is a transfer; give {PREFIX}NAME, or no surrogate")
    names, known = zip(*(_named(spec) for spec in specs), strict=True)
    labels = numbered(names)
    # What the user typed, a file and a class say, is as good as the name, where it says which.
    answers = [{label, *({spec} if specs.count(spec) == 1 else ())} for label, spec in zip(labels, specs, strict=True)]
    own: list[dict[str, Any]] = [{} for _ in specs]
    given: dict[str, tuple[int, str]] = {}
    for key, value in (options or {}).items():
        place, name = given[key] = owner_of(key, answers, known, labels, argument="attack option", kind="attack")
        if name in own[place]:
            raise UserError(f"attack option {labels[place]}.{name}: it is given twice, once as {name} alone")
        own[place][name] = value
    made = []
    for place, spec in enumerate(specs):
        with _naming(labels[place]):
            more = surrogates if carried[place] else ()
            made.append(make_attack(spec, own[place] or None, threat, resolve=resolve, surrogates=more))
    return WorstCase(tuple(made), given)


def _named(spec: str | Attack) -> tuple[str, Sequence[str]]:
    """The name of an attack, and the options that can be given beside it."""
    if isinstance(spec, Attack):
        return spec.name, ()
    cls = _class_of(spec.removeprefix(PREFIX))
    if spec.startswith(PREFIX):
        return f"{PREFIX}{cls.name}", [*option_types(cls), "ensemble"]
    return cls.name, [*option_types(cls)]


@contextlib.contextmanager
def _naming(label: str) -> Iterator[None]:
    """Context manager: an error about an option names the attack that has it."""
    try:
        yield
    except UserError as error:
        said = re.sub(r"^(?:attack option )?(\w+)(?= must\b|: unknown name)", rf"attack option {label}.\1", str(error))
        error.args = (said, *error.args[1:])
        raise


def _check_types(spec: object, options: object) -> None:
    if not isinstance(spec, str):
        came = f"the class {spec.__name__}" if isinstance(spec, type) else repr(spec)
        raise UserError(f"attack: expected a name, FILE.py:NAME or an instance of Attack, got {came}")
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"attack_options: expected a mapping such as {{'steps': 40}}, got {options!r}")


class Attempt(NamedTuple):
    """What one attempt of an attack made, (N, C, H, W), and the passes that each image cost, (N,) int64."""

    candidate: Tensor
    forwards: Tensor
    backwards: Tensor


def perturb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack: str | Attack = "pgd",
    norm: str = "linf",
    eps: float = 8 / 255,
    attack_options: Mapping[str, Any] | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Candidates of one attempt of an attack, (N, C, H, W): all steps taken, nothing judged.

    x: (N, C, H, W) in [0, 1]; y: (N,) int64; targets: (N,) int64 or None. Two images that are equal
    get equal random numbers only if they stand at the same place. The model's mode is left as found. An attack
    that learns from many images does so from these, at every call.
    """
    made = attempt(
        model, x, y, attack=attack, norm=norm, eps=eps, attack_options=attack_options, targets=targets, seed=seed
    )
    return made.candidate


def attempt(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack: str | Attack = "pgd",
    norm: str = "linf",
    eps: float = 8 / 255,
    attack_options: Mapping[str, Any] | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
    place: Tensor | None = None,
    block: int | None = None,
) -> Attempt:
    """As `perturb`, with what it cost.

    place: (N,) int64, to which the images' random numbers belong; by default their places in the batch.
    block: compute in blocks of so many rows (see `Network`), so that no result depends on how many others share a
    batch; None: in one.
    """
    threat = Threat(norm, eps)
    made = make_attack(attack, attack_options, threat)
    device = x.device
    if place is None:
        place = torch.arange(len(x), device=device)
    base = Stream(torch.zeros_like(place)).child(f"seed {seed}").child(place)
    with frozen(model), torch.no_grad():
        network = Network(model, device=device, block=block)
        zero = torch.zeros_like(y)
        learned: Mapping[str, Tensor] = {}
        if needs_fit(made, threat):
            learned = fit_attack(made, network, FitData(x, y), threat=threat, target=_one(targets), seed=seed).learned
        stream = base.child(f"attack {made.name}")
        batch = Batch(ball_of(made, threat, x), y, targets, zero, stream, zero, learned=learned)
        forwards, backwards = torch.zeros_like(y), torch.zeros_like(y)

        def ask() -> Query:
            return Query(
                network,
                batch,
                access=made.access,
                asker=f"attack {made.name}",
                noise=base.child("network"),
                forwards=forwards,
                low=torch.zeros_like(y, dtype=torch.bool),
                watch=False,
            )

        query = ask()
        state = made.start(query, batch.handed())
        for step in range(made.length):
            forwards, backwards = query.forwards, backwards + query.backwards
            batch = replace(batch, step=torch.full_like(y, step))
            query = ask()
            state = made.step(query, batch.handed(), state)
        candidate = batch.ball.project(state.candidate.detach())
    return Attempt(candidate, query.forwards, backwards + query.backwards)


def _one(targets: Tensor | None) -> str | int | None:
    """The target of samples that all aim at one class; else what says that they do not."""
    if targets is None:
        return None
    return int(targets[0]) if bool((targets == targets[0]).all()) else "a class for each"
