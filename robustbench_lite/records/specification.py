"""What a run was: model, defenses, data set, attack, threat and circumstances, as strict JSON and back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from ..errors import RecordError
from .plain import canonical, decode, plain, slug, without
from .schema import NORMS, SCHEMA_VERSION

OWN_LIMITS = "own limits"
STATUSES = ("complete", "shard", "failed")


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The network: `weights` and `recipe` say where it came from, `sha256` and `source_sha256` what it is.

    `source_sha256` is that of the file with a user's own network or factory; `layout_sha256` that of the
    network as it prints itself, which tells apart two of the same weights.
    """

    name: str
    sha256: str
    parameters: int
    weights: str | None = None
    preprocessing: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None
    source_sha256: str | None = None
    layout_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class DefenseRecord:
    """A defense and what it states of itself; `spec` is what the user typed.

    `options` are those that differ from the defaults, `resolved` are all. `adaptive`: the attack that it states to be
    made for it, `{"attack": NAME, "options": {...}}`; null where it states none. `fit`: what it learned from.
    """

    name: str
    spec: str
    options: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    source_sha256: str | None = None
    randomized: bool
    differentiable: bool
    kind: str
    rejects: bool = False
    fit: dict[str, Any] | None = None
    adaptive: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """The samples of the whole run, of which a shard holds a share.

    `class_names` are the classes' names in the order of the labels; null in records that do not have them.
    `framing` is the resizing and cropping that the network's configuration asked for; null where it asked for none.
    """

    name: str
    split: str
    fingerprint: str
    classes: int
    shape: tuple[int, ...]
    samples: int
    class_names: tuple[str, ...] | None = None
    framing: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class AttackRecord:
    """The attack with its options as passed and with every field as resolved.

    `minimal`: it looked for the nearest adversarial image, which may lie beyond eps. `own_limits`: its options are its
    limits, and the threat is the whole box.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)
    source_sha256: str | None = None
    access: str
    minimal: bool = False
    own_limits: bool = False


@dataclass(frozen=True, kw_only=True)
class AttackOutcome:
    """One of several attacks in its turn, on the images that those before it left.

    `options` as passed. `images`: those it was given, `successes`: those of them that it brought to the goal.
    `forwards` and `backwards` are summed over its images, the clean pass aside.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    images: int
    successes: int
    forwards: int
    backwards: int


@dataclass(frozen=True, kw_only=True)
class ThreatRecord:
    """The ball and the box; `eps` is the largest of the rows where it differs by sample."""

    norm: str
    eps: float
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EnvironmentRecord:
    """Versions and machine."""

    python: str
    torch: str
    torchvision: str | None = None
    numpy: str
    platform: str
    threads: int
    git_commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class TimesRecord:
    """When the run began (ISO 8601, UTC) and how long it took in all."""

    started: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CostsRecord:
    """What the network and its defenses cost; null where it is not known or was not measured.

    `training_seconds`: of the training, by its history. `forward_ratio`: time of a forward pass over that of the
    undefended network, both measured side by side (`sweep.costs`). `passes`: forward passes of the network that one
    prediction takes, all draws counted.
    """

    training_seconds: float | None = None
    forward_ratio: float | None = None
    passes: float | None = None


@dataclass(frozen=True, kw_only=True)
class ChecksRecord:
    """Which checks ran. asked: whether sanity checks were to run, which `--no-checks` switches off.

    before, after: names of the model checks before the attack and of the sanity checks after it. images: how many
    surviving images other attacks were tried on.
    """

    asked: bool
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    images: int = 0


@dataclass(frozen=True, kw_only=True)
class ExamplesRecord:
    """The saved images of the run."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Specification:
    """A run without its rows.

    `calls` counts all queries: `forwards` and `backwards` are the sums of the rows, others (such as
    `check_forwards`) stand beside them. `shard` is (I, N) with 1 <= I <= N. `verdict`: a word of `reliability.Word` and
    its reason; `next_step`: what to run after it; `checks`: which checks ran, null in records that do not know.
    `by_attack`: what each of several attacks did; empty where the run is of one.
    """

    schema_version: int = SCHEMA_VERSION
    version: str
    status: str
    model: ModelRecord
    defenses: tuple[DefenseRecord, ...] = ()
    dataset: DatasetRecord
    attack: AttackRecord
    threat: ThreatRecord
    target: str | None = None
    seed: int
    eot: int = 1
    votes: int = 1
    precision: str = "float32"
    deterministic: bool = False
    max_queries: int | None = None
    batch_size: int
    shard: tuple[int, int] | None = None
    warnings: tuple[str, ...] = ()
    verdict: str = ""
    next_step: str = ""
    checks: ChecksRecord | None = None
    device: str
    environment: EnvironmentRecord
    times: TimesRecord
    calls: dict[str, int]
    rows_sha256: str = ""
    examples: ExamplesRecord | None = None
    costs: CostsRecord | None = None
    by_attack: tuple[AttackOutcome, ...] = ()

    def to_json(self) -> str:
        """Strict JSON in the order of the fields. Raises TypeError for what JSON cannot say, NaN included."""
        return json.dumps(plain(self, "specification"), allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Specification:
        """The specification that `to_json` wrote.

        Raises RecordError for what is not strict JSON, of a newer schema version, lacks a field, has one
        too many, or holds a value of the wrong type (a number written as text, say).
        """
        try:
            raw = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"specification is not strict JSON ({_first_line(error)})") from None
        if not isinstance(raw, dict):
            raise RecordError("specification is not a JSON object")
        version = raw.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise RecordError(
                f"written by a newer robustbench-lite (schema version {version}, this one reads up to "
                f"{SCHEMA_VERSION}); upgrade to read it"
            )
        if version in (1, 2, 3, 4):
            _complete(raw)
        specification: Specification = decode(cls, raw, "specification")
        fault = specification._fault()
        if fault:
            raise RecordError(fault)
        return specification

    def _fault(self) -> str | None:
        if self.schema_version < 1:
            return f"schema_version must be >= 1, got {self.schema_version}"
        if self.status not in STATUSES:
            return f"status must be one of {', '.join(STATUSES)}, got {self.status!r}"
        if self.threat.norm not in NORMS:
            return f"threat.norm must be one of {', '.join(NORMS)}, got {self.threat.norm!r}"
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            return f"shard must be [I, N] with 1 <= I <= N, got {list(self.shard)}"
        if (self.status == "shard" and self.shard is None) or (self.status == "complete" and self.shard is not None):
            return f"status {self.status!r} does not go with shard {self.shard}"
        return None

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: all that decides the verdicts, by content and not by place.

        Left out are the circumstances: package version, where weights and plug-ins came from, options as
        passed (`resolved` is kept), device, batch size, shard, times, costs, environment, and what came out.
        Sources of attack and defenses are kept by hash, so a changed plug-in makes another run.
        """
        told = plain(self, "specification")
        kept: dict[str, Any] = {
            key: told[key] for key in ("threat", "target", "seed", "eot", "votes", "precision", "deterministic")
        }
        kept["dataset"] = without(told["dataset"], "class_names", "framing")  # both are in the fingerprint
        kept["model"] = without(told["model"], "weights", "recipe")
        kept["defenses"] = [_deciding(defense) for defense in told["defenses"]]
        kept["attack"] = without(told["attack"], "options", "minimal", "own_limits")
        if self.max_queries is not None:
            kept["max_queries"] = self.max_queries
        return kept

    def run_id(self) -> str:
        """`MODEL-DEFENSE-DATASET-ATTACK-NORM-EPS-HASH`, safe as a file name anywhere."""
        parts = [self.model.name, self.defense, self.dataset.name, self.attack.name]
        name = "-".join([*map(slug, parts), slug(self.threat.norm), slug(eps_text(self.threat.eps))])
        text = json.dumps(canonical(self.identity()), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def attacks(self) -> tuple[tuple[str, str, AttackOutcome], ...]:
        """Of each of several attacks its name, its options as passed (`steps=100`), and what it did."""
        return tuple((each.name, _pairs(each.options), each) for each in self.by_attack)

    @property
    def attack_options(self) -> str:
        """The attack's options as passed: `steps=100 restarts=3`."""
        return _pairs(self.attack.options)

    @property
    def defense_options(self) -> str:
        """The defenses' options that differ from the defaults: `bits=3`, with names where there are several."""
        several = len(self.defenses) > 1
        return " ".join(
            text for d in self.defenses if (text := _pairs(d.options, prefix=f"{d.name}." if several else ""))
        )

    @property
    def rejects(self) -> bool:
        """Whether a prediction may be one more than the classes: the image was turned away."""
        return any(defense.rejects for defense in self.defenses)

    @property
    def defense(self) -> str:
        """The names of the defenses in order, or `none`."""
        return " + ".join(defense.name for defense in self.defenses) or "none"


def eps_text(eps: float) -> str:
    """An eps as papers write it: k/255 where it is one and no short decimal says the same.

    >>> eps_text(8 / 255), eps_text(0.3), eps_text(1.0)
    ('8/255', '0.3', '1')
    """
    short = format(eps, ".3g")
    if float(short) == eps:
        return short
    # An eps above 1000 is no fraction of anybody's pixels (and its product may overflow).
    count = round(eps * 255) if abs(eps) < 1000 else 0
    return f"{count}/255" if count >= 1 and abs(eps - count / 255) <= 1e-9 else format(eps, ".6g")


def threat_text(norm: str, eps: float) -> str:
    """The threat in words; norm as in a summary, where it may be that of an attack with limits of its own.

    >>> threat_text("linf", 8 / 255), threat_text(OWN_LIMITS, 1.0)
    ('linf 8/255', 'own limits')
    """
    return norm if norm == OWN_LIMITS else f"{norm} {eps_text(eps)}"


def _pairs(options: dict[str, Any], *, prefix: str = "") -> str:
    def shown(value: Any) -> str:
        return eps_text(value) if isinstance(value, float) else str(value)

    return " ".join(f"{prefix}{name}={shown(value)}" for name, value in options.items())


def _deciding(defense: dict[str, Any]) -> dict[str, Any]:
    """What of a defense's record decides verdicts; what older records do not know is left out where it is nothing."""
    nothing = [name for name in ("rejects", "fit") if not defense[name]]
    return without(defense, "spec", "options", "adaptive", *nothing)


def _complete(raw: dict[str, Any]) -> None:
    """What a version did not know yet.

    Version 1: minimal attacks, a limit of queries; 2: limits of an attack's own; 3: costs, attacks made for a defense,
    defenses that reject or learn; 4: which checks ran, what to run next, several attacks in one run, and the classes'
    names.
    """
    complete_dataset(raw)
    raw.setdefault("by_attack", [])
    if raw["schema_version"] == 1:
        raw.setdefault("max_queries", None)
    for defense in raw["defenses"] if isinstance(raw.get("defenses"), list) else ():
        if isinstance(defense, dict):
            defense.setdefault("rejects", False)
            defense.setdefault("fit", None)
            defense.setdefault("adaptive", None)
    if raw["schema_version"] < 3 and isinstance(raw.get("attack"), dict):
        if raw["schema_version"] == 1:
            raw["attack"].setdefault("minimal", False)
        raw["attack"].setdefault("own_limits", False)
    raw.setdefault("costs", None)
    raw.setdefault("next_step", "")
    raw.setdefault("checks", None)


def complete_dataset(raw: dict[str, Any]) -> None:
    """Add what older records do not say of their data set."""
    if isinstance(raw.get("dataset"), dict):
        raw["dataset"].setdefault("class_names", None)
        raw["dataset"].setdefault("framing", None)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
