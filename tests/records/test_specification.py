from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_lite.errors import RecordError
from robustbench_lite.records import (
    AttackRecord,
    DatasetRecord,
    DefenseRecord,
    EnvironmentRecord,
    ExamplesRecord,
    ModelRecord,
    Specification,
    ThreatRecord,
    TimesRecord,
    eps_text,
)

from .run_builder import defense, specification

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
whole = st.integers(-(2**70), 2**70)
plain = st.recursive(
    st.none() | st.booleans() | whole | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
options = st.dictionaries(text, plain, max_size=3)


specifications = st.builds(
    Specification,
    schema_version=st.just(1),
    version=text,
    status=st.just("complete"),
    model=st.builds(
        ModelRecord,
        name=text,
        sha256=text,
        parameters=whole,
        weights=st.none() | text,
        preprocessing=st.none() | options,
        recipe=st.none() | options,
    ),
    defenses=st.lists(
        st.builds(
            DefenseRecord,
            name=text,
            spec=text,
            options=options,
            source_sha256=st.none() | text,
            randomized=st.booleans(),
            differentiable=st.booleans(),
            kind=text,
        ),
        max_size=2,
    ).map(tuple),
    dataset=st.builds(
        DatasetRecord,
        name=text,
        split=text,
        fingerprint=text,
        classes=whole,
        shape=st.lists(whole, max_size=3).map(tuple),
        samples=whole,
    ),
    attack=st.builds(
        AttackRecord, name=text, options=options, resolved=options, source_sha256=st.none() | text, access=text
    ),
    threat=st.builds(
        ThreatRecord, norm=st.sampled_from(["linf", "l2", "l1", "l0"]), eps=finite, low=finite, high=finite
    ),
    target=st.none() | text,
    seed=whole,
    batch_size=whole,
    warnings=st.lists(text, max_size=2).map(tuple),
    device=text,
    environment=st.builds(
        EnvironmentRecord,
        python=text,
        torch=text,
        torchvision=st.none() | text,
        numpy=text,
        platform=text,
        threads=whole,
        git_commit=st.none() | text,
    ),
    times=st.builds(TimesRecord, started=text, seconds=finite),
    calls=st.dictionaries(text, whole, max_size=3),
    examples=st.none() | st.builds(ExamplesRecord, file=text, sha256=text),
)


@given(specifications)
def test_json_and_back(spec: Specification) -> None:
    again = Specification.from_json(spec.to_json())
    assert again == spec
    assert again.to_json() == spec.to_json()
    assert again.run_id() == spec.run_id()
    name = spec.run_id()
    assert len(name.encode()) < 200
    assert not set(name) & set('/\\:*?"<>| \n\0')
    assert not name.startswith(".")


@pytest.mark.parametrize(
    "changes",
    [
        {"threat": {"norm": "linf", "eps": "8/255", "low": 0.0, "high": 1.0}},
        {"seed": "0"},
        {"seed": True},
        {"seed": 0.5},
        {"batch_size": None},
        {"status": "done"},
        {"status": "shard"},
        {"shard": [1, 2]},
        {"shard": [1, 2, 3]},
        {"status": "shard", "shard": [3, 2]},
        {"threat": {"norm": "l3", "eps": 0.1, "low": 0.0, "high": 1.0}},
        {"calls": {"forwards": "12"}},
        {"defenses": [{"name": "x"}]},
        {"extra": 1},
        {"times": 3},
        {"schema_version": 0},
    ],
)
def test_what_is_no_specification_is_refused_in_one_line(changes: dict[str, Any]) -> None:
    raw = {**json.loads(specification().to_json()), **changes}
    with pytest.raises(RecordError) as caught:
        Specification.from_json(json.dumps(raw))
    assert "\n" not in str(caught.value)
    assert next(reversed(changes)) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense", '{"seed": NaN}', b"\xff\xfe\x00", "[" * 100_000])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(RecordError):
        Specification.from_json(text)


def test_a_missing_field_is_named() -> None:
    raw = json.loads(specification().to_json())
    del raw["seed"]
    with pytest.raises(RecordError, match="lacks seed"):
        Specification.from_json(json.dumps(raw))


def test_a_newer_version_is_told_from_a_broken_one() -> None:
    with pytest.raises(RecordError, match=r"newer robustbench-lite .*upgrade"):
        Specification.from_json('{"schema_version": 6, "anything": 1}')


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, object(), b"x", {"a": [{"b": float("nan")}]}])
def test_what_json_cannot_say_is_not_written(value: Any) -> None:
    spec = specification()
    spec = dataclasses.replace(spec, attack=dataclasses.replace(spec.attack, resolved={"value": value}))
    with pytest.raises(TypeError, match=r"attack\.resolved\.?"):
        spec.to_json()


def _inside(part: str, **changes: Any) -> dict[str, Any]:
    return {part: dataclasses.replace(getattr(specification(), part), **changes)}


@pytest.mark.parametrize(
    "changes",
    [
        _inside("model", weights="elsewhere.pt", recipe={"epochs": 3}),
        _inside("attack", options={}),
        _inside("environment", torch="3.0", git_commit="c"),
        _inside("times", seconds=9.0),
        {"version": "9"},
        {"device": "cuda"},
        {"batch_size": 1},
        {"status": "shard", "shard": (1, 2)},
        {"status": "failed"},
        {"warnings": ("w",)},
        {"verdict": "doubtful"},
        {"rows_sha256": "c" * 64},
        {"calls": {}},
        {"examples": ExamplesRecord(file="e.npz", sha256="d")},
    ],
)
def test_circumstances_do_not_make_another_run(changes: dict[str, Any]) -> None:
    assert specification(**changes).run_id() == specification().run_id()


@pytest.mark.parametrize(
    "changes",
    [
        _inside("model", sha256="c" * 64),
        _inside("model", name="mlp"),
        _inside("model", preprocessing={"mean": [0.5]}),
        _inside("dataset", fingerprint="c" * 64),
        _inside("dataset", samples=41),
        _inside("attack", resolved={"steps": 6}),
        _inside("attack", source_sha256="c" * 64),
        _inside("threat", eps=0.1),
        _inside("threat", norm="l2"),
        {"defenses": (defense(),)},
        {"target": "next"},
        {"seed": 1},
        {"eot": 2},
        {"votes": 3},
        {"precision": "bfloat16"},
        {"deterministic": True},
    ],
)
def test_what_decides_the_verdicts_makes_another_run(changes: dict[str, Any]) -> None:
    assert specification(**changes).run_id() != specification().run_id()


def test_a_changed_plug_in_makes_another_run_but_not_another_path_to_it() -> None:
    one = specification(defenses=(defense(source_sha256="a", spec="here/d.py:D"),))
    assert one.run_id() == specification(defenses=(defense(source_sha256="a", spec="there/d.py:D"),)).run_id()
    assert one.run_id() != specification(defenses=(defense(source_sha256="b", spec="here/d.py:D"),)).run_id()


def test_equal_numbers_are_one_identity() -> None:
    ids = {specification(**_inside("threat", eps=eps, norm="l2")).run_id() for eps in (1, 1.0)}
    assert len(ids) == 1


def test_run_id_can_be_read() -> None:
    spec = specification(defenses=(defense(), defense("random-noise")))
    assert spec.run_id().startswith("small_cnn-bit_depth_+_random_noise-digits-pgd-linf-8_255-")
    assert specification(**_inside("model", name="/home/me/net.py:make")).run_id().startswith("net.py_make-none-")
    assert specification(**_inside("dataset", name="npz:/data/x.npz")).run_id().split("-")[2] == "npz_x.npz"


@pytest.mark.parametrize(
    ("eps", "written"),
    [
        (8 / 255, "8/255"),
        (8 / 255 + 5e-10, "8/255"),
        (8 / 255 + 5e-9, "0.0313726"),
        (0.0313, "0.0313"),
        (0.3, "0.3"),
        (0.2, "0.2"),
        (1, "1"),
        (2.5, "2.5"),
        (0, "0"),
        (0.12345678, "0.123457"),
    ],
)
def test_eps_is_written_as_papers_do(eps: float, written: str) -> None:
    assert eps_text(eps) == written
