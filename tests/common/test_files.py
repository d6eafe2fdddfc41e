"""Files and folders appear whole or not at all, whatever happens to who writes them."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgedistill.common import disk
from edgedistill.common.files import (
    WriteError,
    atomic_file,
    atomic_folder,
    atomic_link,
    check_writable,
    read_json,
    read_link,
    recover,
    write_json,
    write_text,
)
from edgedistill.data.shards import write_shard

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs flock and renameat2")


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


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": {"b": [1, NaN]}}', r"a\.b\.1 is nan"),
        ('{"a": 1e999}', "a is inf"),
        ("[" * 100_000, "nested deeper"),
    ],
)
def test_numbers_of_json_are_finite_and_it_is_not_too_deep(tmp_path, text, line):
    file = tmp_path / "some.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"some\.json: .*{line}"):
        read_json(file)


def test_json_that_is_not_finite_is_not_written(tmp_path):
    file = tmp_path / "eval.json"
    write_json(file, {"fd": 1.0})
    with pytest.raises(ValueError, match=r"eval\.json: student\.fd is nan"):
        write_json(file, {"student": {"fd": float("nan")}})
    assert read_json(file) == {"fd": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["eval.json"]


# --- Kills and other processes ------------------------------------------------------------------

# Replaces the folder at argv[1] or the file in it, and is killed at a call of `disk` or `Path`.
REPLACE = """
import os, signal, sys
from pathlib import Path
from edgedistill.common import disk, files

target, call, number, swaps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
if swaps == "no":
    disk._swapped = lambda one, other: False
left = [number]

def dies(before):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments, **options)
    return call

home = {"replace": Path, "_swapped": disk, "put": files, "sync": files}
home["rmtree"] = files.shutil
if call in home:
    setattr(home[call], call, dies(getattr(home[call], call)))
if target.suffix:
    files.write_text(target, "new")
else:
    with files.atomic_folder(target) as work:
        (work / "new").write_text("new")
"""


def replace(target: Path, *words: str) -> int:
    """In a process of its own; its exit code."""
    return subprocess.run([sys.executable, "-c", REPLACE, str(target), *words]).returncode


@linux
@pytest.mark.parametrize(
    ("call", "number", "swaps", "left"),
    [
        ("put", 0, "yes", "old"),
        ("_swapped", 0, "yes", "old"),
        ("sync", 0, "yes", "new"),
        ("rmtree", 0, "yes", "new"),
        ("replace", 1, "no", "old"),  # the new one's own try, then the old one is to go
        ("replace", 2, "no", "old"),  # between the two renames
        ("sync", 0, "no", "new"),
        ("rmtree", 0, "no", "new"),
    ],
)
def test_a_kill_leaves_the_old_folder_or_the_new_one(tmp_path, call, number, swaps, left):
    target = tmp_path / "student"
    target.mkdir()
    (target / "old").write_text("old")
    assert replace(target, call, str(number), swaps) == -signal.SIGKILL
    if swaps == "yes":
        assert [p.name for p in target.iterdir()] == [left]
    recover(target)
    assert [p.name for p in target.iterdir()] == [left]
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    assert replace(target, "", "0", swaps) == 0
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


@linux
def test_a_killed_file_is_the_old_one_and_goes_with_the_next(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")
    assert replace(file, "replace", "0", "yes") == -signal.SIGKILL
    assert file.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    write_text(tmp_path / "another.json", "{}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "another.json"]


def test_a_rename_that_fails_keeps_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / "student"
    target.mkdir()
    (target / "old").write_text("old")
    monkeypatch.setattr(disk, "_swapped", lambda one, other: False)
    rename, done = Path.replace, []

    def fails(self, to):
        done.append(self)
        if len(done) == 3:  # its own try, the old one aside, and then
            raise OSError(5, "Input/output error", str(self))
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", fails)
    with (
        pytest.raises(WriteError, match="student: cannot write there: Input/output error"),
        atomic_folder(target) as work,
    ):
        (work / "new").write_text("new")
    assert len(done) == 4
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_what_the_first_versions_left_between_two_renames_is_taken_back(tmp_path):
    (tmp_path / ".student-abcdef_1-old").mkdir()
    (tmp_path / ".student-abcdef_1-old" / "old").touch()
    (tmp_path / ".student-notes").mkdir()  # somebody's own
    recover(tmp_path / "student")
    assert (tmp_path / "student" / "old").is_file()
    assert (tmp_path / ".student-notes").is_dir()


@linux
def test_what_another_process_is_writing_stays(tmp_path):
    program = """
import sys
from pathlib import Path
from edgedistill.common.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as work:
    (work / "a").write_text("1")
    print("ready", flush=True)
    input()
"""
    target = tmp_path / "student"
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "ready\n"
    recover(target)
    with atomic_folder(target) as work:
        (work / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["b"]
    other.communicate("\n")
    assert other.returncode == 0
    assert [p.name for p in target.iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


@linux
def test_several_processes_may_replace_one_folder_and_one_file(tmp_path):
    program = """
import sys
from pathlib import Path
from edgedistill.common.files import atomic_folder, write_text
here, name = Path(sys.argv[1]), sys.argv[2]
for turn in range(40):
    with atomic_folder(here / "student") as work:
        for part in range(3):
            (work / str(part)).write_text(name)
    write_text(here / "a.json", name * 1000)
"""
    with atomic_folder(tmp_path / "student") as work:
        for part in range(3):
            (work / str(part)).write_text("0")
    command = [sys.executable, "-c", program, str(tmp_path)]
    writers = [subprocess.Popen([*command, name]) for name in "123"]
    gone = 0
    while any(writer.poll() is None for writer in writers):
        gone += not (tmp_path / "student").is_dir()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert gone == 0
    texts = {(tmp_path / "student" / str(part)).read_text() for part in range(3)}
    assert len(texts) == 1
    assert len(set((tmp_path / "a.json").read_text())) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "student"]


# --- What the system refuses --------------------------------------------------------------------


def _text(made: Path) -> None:
    made.write_text("x" * 10_000)


def _shard(made: Path) -> None:
    save_file({"a": torch.zeros(10_000)}, made)


def _array(made: Path) -> None:
    with made.open("wb") as file:
        np.save(file, np.zeros(10_000))


@linux
@pytest.mark.parametrize("write", [_text, _shard, _array])
@pytest.mark.parametrize("kind", [atomic_file, atomic_folder])
def test_a_write_that_is_refused_names_its_place_and_leaves_nothing(tmp_path, kind, write):
    """By a limit on the size of files, which breaks off a write as a full disk does."""
    import resource

    target, limit = tmp_path / "deep" / "x.bin", resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with (
            pytest.raises(WriteError, match=r"deep/x\.bin: cannot write there: \w+"),
            kind(target) as made,
        ):
            write(made / "part.npy" if made.is_dir() else made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_even_if_a_library_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "ROOM", 2**70)
    with (
        pytest.raises(WriteError, match="b: cannot write there: No space left on device"),
        atomic_folder(tmp_path / "b"),
    ):
        raise RuntimeError("Can't write weights")


@linux
def test_a_place_that_takes_no_files_is_named():
    for write in (lambda p: write_text(p, ""), lambda p: check_writable(p, str(p))):
        with pytest.raises(WriteError, match=r"/proc/edge/x\.json: cannot write there: \w+"):
            write(Path("/proc/edge/x.json"))


def test_errors_about_other_files_are_their_own(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "a"):
        (tmp_path / "nowhere").read_text()
    with pytest.raises(ConnectionError), atomic_folder(tmp_path / "a"):
        raise ConnectionError(111, "Connection refused")


@pytest.mark.parametrize(
    "refusal",
    [
        {"errno": errno.EPERM},  # FAT
        {"errno": errno.ENOSYS},
        {"errno": errno.EINVAL, "winerror": 1314},  # Windows, without the privilege
    ],
)
def test_where_links_are_refused_a_text_file_stands_for_one(tmp_path, monkeypatch, refusal):
    def refuse(path, to):
        error = OSError()
        for name, number in refusal.items():
            setattr(error, name, number)
        raise error

    atomic_link(tmp_path / "latest", "old")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    for to in ("mine", "deep/mine-2"):
        atomic_link(tmp_path / "latest", to)
        assert not (tmp_path / "latest").is_symlink()
        assert (tmp_path / "latest").read_text() == f"{to}\n"
        assert read_link(tmp_path / "latest") == to
    monkeypatch.undo()
    atomic_link(tmp_path / "latest", "new")
    assert read_link(tmp_path / "latest") == os.readlink(tmp_path / "latest")  # noqa: PTH115
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]


@pytest.mark.parametrize("content", [b"", b"two\nlines\n", b"\xff\n", b"x" * 2**17])
def test_a_file_that_is_no_link_says_nothing(tmp_path, content):
    (tmp_path / "latest").write_bytes(content)
    assert read_link(tmp_path / "latest") is None
    assert read_link(tmp_path) is None
    assert read_link(tmp_path / "nowhere") is None


def test_a_full_disk_is_no_refusal_of_links(tmp_path, monkeypatch):
    def full(path, to):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(WriteError, match="latest: cannot write there: No space left"):
        atomic_link(tmp_path / "latest", "mine")


def test_a_link_replaces_a_link_but_no_folder(tmp_path):
    for to in ("a", "b"):
        atomic_link(tmp_path / "latest", to)
        assert os.readlink(tmp_path / "latest") == to  # noqa: PTH115
    (tmp_path / "latest").unlink()
    (tmp_path / "latest" / "mine").mkdir(parents=True)
    with pytest.raises(WriteError, match="latest: cannot write there: Is a directory"):
        atomic_link(tmp_path / "latest", "a")
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]


# --- What lasts ---------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("kind", [atomic_file, atomic_folder])
def test_all_is_on_the_disk_before_the_rename_and_the_rename_after_it(tmp_path, kind, monkeypatch):
    target, synced, fsync = tmp_path / "a", [], os.fsync

    def note(handle):
        synced.append((os.readlink(f"/proc/self/fd/{handle}"), target.exists()))  # noqa: PTH115
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    with kind(target) as made:
        if made.is_dir():
            (made / "b").mkdir()
            (made / "b" / "c").write_text("c")
        else:
            made.write_text("a")
    made = str(made)
    names = [made, f"{made}/b", f"{made}/b/c"] if kind is atomic_folder else [made]
    assert [name for name, there in synced if not there] == names
    assert synced[-1] == (str(tmp_path), True)
