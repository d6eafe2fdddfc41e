"""Compiled graphs are kept: found again, never trusted when damaged, bounded, and no trouble."""

import os
from contextlib import suppress

import pytest

from edgedistill_runtime import compiled

KEY = {"engine": "1.0", "graph": "abc"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_what_is_kept_is_found_under_its_whole_key(folder):
    assert compiled.find(KEY) is None
    compiled.keep(KEY, b"program")
    assert compiled.find(dict(reversed(KEY.items()))) == b"program"
    assert compiled.find({**KEY, "engine": "1.1"}) is None
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "longer"])
def test_a_damaged_file_is_as_none(folder, damage):
    compiled.keep(KEY, b"a longer program" * 10)
    (file,) = folder.iterdir()
    data = file.read_bytes()
    wrong = {
        "cut": data[:-1],
        "flip": data[:50] + bytes([data[50] ^ 1]) + data[51:],
        "empty": b"",
        "longer": data + b"x",
    }
    file.write_bytes(wrong[damage])
    assert compiled.find(KEY) is None
    compiled.keep(KEY, b"again")
    assert compiled.find(KEY) == b"again"


def test_the_files_read_longest_ago_go_first(folder, monkeypatch):
    monkeypatch.setattr(compiled, "LARGEST", 3 * 72)
    for number in range(3):
        before = set(folder.glob("*"))
        compiled.keep({"graph": str(number)}, bytes(40))
        (new,) = set(folder.iterdir()) - before
        os.utime(new, (1000 + number, 1000 + number))
    compiled.keep({"graph": "3"}, bytes(40))
    assert compiled.find({"graph": "0"}) is None
    assert [compiled.find({"graph": str(n)}) for n in (2, 3)] == [bytes(40)] * 2


def test_it_is_turned_off_by_an_empty_name(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEDISTILL_CACHE", "")
    monkeypatch.chdir(tmp_path)
    compiled.keep(KEY, b"program")
    assert compiled.find(KEY) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "file"))
    compiled.keep(KEY, b"program")
    assert compiled.find(KEY) is None
    assert (tmp_path / "file").read_text() == "in the way"


def keep_file(content, key=KEY):
    with compiled.new_file(key) as new:
        if new is not None:
            new.write_bytes(content)


def test_a_file_is_found_under_its_whole_key(folder):
    assert compiled.find_file(KEY) is None
    keep_file(b"program")
    file = compiled.find_file(dict(reversed(KEY.items())))
    assert file.read_bytes() == b"program"
    assert [*folder.iterdir()] == [file]
    assert compiled.find_file({**KEY, "engine": "1.1"}) is None


@pytest.mark.parametrize("damage", [b"progra", b"progran", b"", b"programs"])
def test_a_damaged_file_is_as_none_and_goes(folder, damage):
    keep_file(b"program")
    (file,) = folder.iterdir()
    file.write_bytes(damage)
    assert compiled.find_file(KEY) is None
    keep_file(b"again")
    (file,) = folder.iterdir()
    assert compiled.find_file(KEY) == file
    assert file.read_bytes() == b"again"


def test_a_file_that_was_not_written_is_not_kept(folder):
    keep_file(b"")
    with suppress(RuntimeError), compiled.new_file(KEY) as new:
        new.write_bytes(b"half")
        raise RuntimeError("engine")
    assert list(folder.iterdir()) == []


def test_no_file_is_offered_where_none_can_be_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for place in ("", str(tmp_path / "file")):
        monkeypatch.setenv("EDGEDISTILL_CACHE", place)
        with compiled.new_file(KEY) as new:
            assert new is None
        assert compiled.find_file(KEY) is None
