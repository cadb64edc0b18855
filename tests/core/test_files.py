"""Files are written whole, and as readable as any other file of their owner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustbench_lite.files import replace_whole


@pytest.fixture(params=[0o022, 0o077], ids=oct)
def allowed(request: pytest.FixtureRequest) -> Iterator[int]:
    """The mode of a new file under a umask."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def closed(path: Path) -> None:
    """As writers do that begin with a file which nobody else may read."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    path.write_text("whole")


def test_a_file_has_the_mode_that_the_umask_leaves(allowed: int, tmp_path: Path) -> None:
    replace_whole(tmp_path / "net", closed)
    assert (tmp_path / "net").stat().st_mode & 0o777 == allowed


def test_what_is_not_written_to_its_end_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_text("old")

    def half(temporary: Path) -> None:
        temporary.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_whole(path, half)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["net"]
