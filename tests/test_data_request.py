"""A request for a data set reads each split once, and keeps apart what is not the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from robustbench_lite import data
from robustbench_lite.data_request import DataRequest
from robustbench_lite.halves import HalfRequest


def test_each_split_is_read_once_and_no_other_is_given_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []
    load = data.load_dataset

    def counted(name: str, *, split: str, **more: Any) -> Any:
        read.append((name, split))
        return load(name, split=split, **more)

    monkeypatch.setattr(data, "load_dataset", counted)
    request = DataRequest("digits")
    whole = request.load("train")
    assert request.load("train") is whole
    assert request.load() is request.load("test") is not whole
    assert read == [("digits", "train"), ("digits", "test")]
    assert dataclasses.replace(request, image_size=32).load("train") is not whole
    assert request.load("train") is whole
    first, second = (HalfRequest(**vars(request), half=half).load("train") for half in (1, 2))
    assert len(first) + len(second) == len(whole)
    assert first.fingerprint != second.fingerprint
    assert read == [("digits", "train"), ("digits", "test"), ("digits", "train")]
    assert dataclasses.replace(request) == request


def test_an_answered_request_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    request = DataRequest("digits")
    train, test = request.load("train"), request.load("test")
    monkeypatch.setattr(data, "load_dataset", lambda *_, **__: pytest.fail("read"))
    answered = DataRequest("digits").answered(train=test, test=train)
    assert answered.load("train") is test
    assert answered.load() is train
