"""Prompt files: text, parquet and webdataset shards; what is wrong is one line."""

import json
import sys

import pytest
from tars import write_tar

from edgedistill.data import find_captions, read_prompts
from edgedistill.data.tars import read_samples
from edgedistill.recipes.loading import load
from edgedistill.teachers.families.stable_diffusion import StableDiffusion


@pytest.mark.parametrize(
    ("prompt", "weight"),
    [
        ("a (red:1.2) apple", "(red:1.2)"),
        ("(deep red: .5), apple", "(deep red: .5)"),
        ("((red)) apple", "((red))"),
        ("apple <lora:fruit:0.8>", "<lora:fruit:0.8>"),
        ("a (red) apple at 10:30 (left: one)", ""),
        ("x < 3: y > 2", ""),
    ],
)
def test_weights_in_prompts_are_text_and_said_to_be(tmp_path, capsys, prompt, weight):
    (tmp_path / "p.txt").write_text(f"plain\n{prompt}\n{prompt}, again\n")
    assert read_prompts(tmp_path / "p.txt")[1] == prompt
    said = " ".join(capsys.readouterr().err.split())
    line = f"2 prompts have weights such as '{weight}': they are read as plain text"
    assert said == (f"{tmp_path / 'p.txt'}: {line}" if weight else "")


def test_one_prompt_with_weights_is_one(tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a (red:1.2) apple\n")
    read_prompts(tmp_path / "p.txt")
    assert "1 prompt has weights" in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def shards(tmp_path):
    """A folder of two tars, with four captions under two keys."""
    folder = tmp_path / "shards"
    folder.mkdir()
    both = json.dumps({"caption": "from json", "alt": "other"})
    (folder / "._a.tar").write_bytes(b"hidden")
    write_tar(folder / "b.tar", {"x/2.jpg": b"", "x/2.json": both, "x/2.txt": "  "})
    write_tar(
        folder / "a.tar",
        {
            "0.jpg": b"",
            "0.txt": " r\u00e9d \n",
            "._0.txt": "hidden",
            "1.json": both,
            "1.txt": "1st",
        },
    )
    return folder


def test_a_text_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(" red \n\nblue, r\u00e9d\n", encoding="utf-8")
    assert read_prompts(file) == ["red", "blue, r\u00e9d"]


def test_tars_in_the_order_of_names(shards):
    assert read_prompts(shards / "b.tar") == ["from json"]
    assert read_prompts(shards) == ["r\u00e9d", "1st", "from json"]
    assert read_prompts(shards, "alt") == ["r\u00e9d", "1st", "other"]
    with pytest.raises(ValueError, match=r"b\.tar: no prompts in it$"):
        read_prompts(shards / "b.tar", "captoin")


def test_samples_are_files_of_one_name(shards):
    found = [(sample.name, sorted(sample.members)) for sample in read_samples(shards / "a.tar")]
    assert found == [("0", [".jpg", ".txt"]), ("1", [".json", ".txt"])]


@pytest.mark.parametrize(
    ("cut", "line"),
    [
        (lambda data: data[:700], "unexpected end of data"),
        (lambda data: b"no tar at all", "truncated header"),
        (lambda data: data[:1024] + b"\7" * 512 + data[1536:], "damaged header at byte 1024"),
    ],
)
def test_a_broken_tar(shards, cut, line):
    file = shards / "a.tar"
    file.write_bytes(cut(write_tar(file, {"0.txt": "red", "1.txt": "blue"}).read_bytes()))
    with pytest.raises(ValueError, match=rf"a\.tar: {line}$"):
        read_prompts(shards)


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("0.txt", b"caf\xe9", "caption not UTF-8"),
        ("0.json", b"{", "caption not JSON: Expecting property name"),
    ],
)
def test_a_caption_that_is_none(tmp_path, name, data, line):
    with pytest.raises(ValueError, match=rf"x\.tar: {line}"):
        read_prompts(write_tar(tmp_path / "x.tar", {name: data}))


@pytest.mark.parametrize("name", ["none.txt", "none.tar", "none"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: No such file or directory$"):
        read_prompts(tmp_path / name)


def test_a_folder_without_any(tmp_path):
    (tmp_path / "prompts.txt").write_text("red")
    with pytest.raises(ValueError, match="no prompts in it"):
        read_prompts(tmp_path)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "prompts.parquet"
    columns = {"caption": [" red ", None, "", "blue"], "TEXT": list("abcd"), "n": [1, 2, 3, 4]}
    parquet.write_table(pyarrow.table(columns), file, row_group_size=2)
    assert read_prompts(file) == ["red", "blue"]
    assert read_prompts(tmp_path, "TEXT") == list("abcd")
    with pytest.raises(ValueError, match="column 'n' does not hold text"):
        read_prompts(file, "n")
    with pytest.raises(ValueError, match=r"no column 'text'; choose data\.caption from caption, "):
        read_prompts(file, "text")
    file.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="not readable as parquet: "):
        read_prompts(file)
    with pytest.raises(ValueError, match=r"none\.parquet: "):
        read_prompts(tmp_path / "none.parquet")


def test_parquet_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ValueError, match=r"parquet needs pyarrow: pip install 'edgedistill\[data\]'"
    ):
        read_prompts(tmp_path / "prompts.parquet")


def test_captions_of_a_run(tiny_sd, shards):
    teacher = StableDiffusion.load(str(tiny_sd))
    found = find_captions(teacher, str(shards), 4, "alt")
    assert found == ["r\u00e9d", "1st", "other", "r\u00e9d"]


def test_the_key_is_a_recipe_s(shards):
    words = [f"data.prompts={shards}", "data.caption=alt"]
    assert load("emoji-lcm", words).data.caption == "alt"
    assert load("emoji-lcm").data.caption == "caption"
