"""Files and folders appear whole or not at all."""

import pytest
import torch
from safetensors.torch import save_file

from edgedistill.data.shards import write_shard
from edgedistill.files import atomic_folder, check_writable, read_json, write_json, write_text


class Power(BaseException):
    """The plug was pulled."""


def interrupted(target):
    with atomic_folder(target) as work:
        (work / "half").write_text("half")
        raise Power


def test_a_folder_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "student"
    with atomic_folder(target) as work:
        (work / "a").write_text("1")
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["a"]
    assert [p.name for p in target.parent.iterdir()] == ["student"]


def test_all_may_read_what_appears(tmp_path):
    """Of safetensors, which it keeps to their owner, too."""
    with atomic_folder(tmp_path / "student") as work:
        (work / "deep").mkdir()
        save_file({"a": torch.zeros(1)}, work / "deep" / "a.safetensors")
        (work / "tool").touch(0o700)
    modes = [
        (tmp_path / "student" / name).stat().st_mode for name in ("deep/a.safetensors", "tool")
    ]
    assert [oct(mode & 0o777) for mode in modes] == ["0o644", "0o744"]
    write_shard(tmp_path / "b" / "b.safetensors", {"a": torch.zeros(1)})
    assert (tmp_path / "b" / "b.safetensors").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["b.safetensors"]


def test_an_interrupted_folder_leaves_nothing(tmp_path):
    with pytest.raises(Power):
        interrupted(tmp_path / "deep" / "deeper" / "student")
    assert list(tmp_path.iterdir()) == []


def test_asking_whether_a_file_can_be_written_leaves_nothing(tmp_path):
    check_writable(tmp_path / "deep" / "deeper" / "bench.json", "--json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--json: cannot write there: a file is"):
        check_writable(tmp_path / "file" / "bench.json", "--json")


def test_an_interrupted_folder_keeps_the_one_before_it(tmp_path):
    target = tmp_path / "student"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(Power):
        interrupted(target)
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_a_new_folder_replaces_the_old_one_entirely(tmp_path):
    target = tmp_path / "student"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_folder(target) as work:
        (work / "new").write_text("new")
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_a_failed_write_keeps_the_file_before_it(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\ud800 is no text")
    assert read_json(file) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("text", [None, "{", "[1]", b"\xff"])
def test_json_that_cannot_be_read_names_its_file(tmp_path, text):
    file = tmp_path / "some.json"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"some\.json"):
        read_json(file)
