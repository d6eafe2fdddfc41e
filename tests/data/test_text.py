"""Text as editors on every system write it: prompts, captions, metadata, classes, mixtures."""

import json
import os
import socket

import pytest
from PIL import Image
from tars import write_tar

from edgedistill.common.text import read_text, shown, split_lines
from edgedistill.data import read_prompts
from edgedistill.data.pictures import list_pictures
from edgedistill.teachers.families.mixture import Mixture

BOM = "\ufeff"
INSIDE = ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\t", "\u00a0"]
"""Characters that stand inside a line; `str.splitlines` cuts at most of them."""


def captions(folder, key="caption"):
    return [record.read()[1] for record in list_pictures(folder, key).records()]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    Image.new("RGB", (20, 20)).save(root / "x.png")
    return root


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", BOM])
@pytest.mark.parametrize("name", ["p.txt", "p.prompts", "p"])
def test_prompts_are_lines_however_they_end(tmp_path, end, mark, name):
    text = mark + end.join(["red", "", " caf\u00e9 \U0001f34e ", BOM + "joined", ""])
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompts(tmp_path / name) == ["red", "caf\u00e9 \U0001f34e", "joined"]


@pytest.mark.parametrize("char", INSIDE)
def test_no_other_character_cuts_a_line(tmp_path, folder, char):
    text = f"a{char}b"
    (tmp_path / "p.txt").write_text(text + "\nc", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == [text, "c"]
    row = json.dumps({"file_name": "x.png", "text": text}, ensure_ascii=False)
    if char >= "\u0080" or char == "\t":  # below, JSON itself wants an escape
        (folder / "metadata.jsonl").write_text(row, encoding="utf-8")
        assert captions(folder) == [text]
        (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(f"file_name,text\nx.png,{text}\n", encoding="utf-8")
    assert captions(folder) == [text]
    (folder / "metadata.csv").unlink()
    (folder / "x.txt").write_text(text, encoding="utf-8")
    assert captions(folder) == [text]


@pytest.mark.parametrize("mark", ["", BOM])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.txt", "red\r\n"),
        ("x.TXT", "red"),
        ("x.caption", " red "),
        ("metadata.jsonl", '{"file_name": "x.png", "text": "red"}\r\n\r\n'),
        ("metadata.jsonl", '{"file_name": "x.png", "caption": "red"}\r'),
        ("metadata.csv", 'file_name,text\r\nx.png,"red"\r\n'),
        ("metadata.csv", "file_name;text\nx.png;red\n"),
        ("metadata.tsv", "file_name\ttext\nx.png\tred\n"),
        ("Metadata.CSV", "text,file_name\rred,x.png\r"),
    ],
)
def test_captions_have_no_mark(folder, mark, name, text):
    (folder / name).write_bytes((mark + text).encode())
    assert captions(folder) == ["red"]


def test_a_cell_may_hold_lines_and_separators(folder):
    (folder / "metadata.csv").write_bytes(b'file_name,text\r\nx.png,"red, ""blue""\r\ngreen"\r\n')
    assert captions(folder) == ['red, "blue"\r\ngreen']


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_other_codes_are_refused_by_name(tmp_path, folder, code, two_modes):
    text = "caf\u00e9\nr\u00e9d"
    data = text.encode(code)
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"p\.txt: (UTF-|not UTF-8).*save it as UTF-8") as caught:
        read_prompts(tmp_path / "p.txt")
    assert len(str(caught.value).splitlines()) == 1
    (folder / "metadata.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=r"metadata\.jsonl: .*save it as UTF-8"):
        captions(folder)
    (folder / "metadata.jsonl").unlink()
    (folder / "x.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"^caption .*save it as UTF-8"):
        captions(folder)
    tar = write_tar(tmp_path / "t.tar", {"0.txt": data})
    with pytest.raises(ValueError, match=r"t\.tar: caption .*save it as UTF-8"):
        read_prompts(tar)
    (tmp_path / "m.json").write_bytes(two_modes.read_text().replace("w", "\u00e9w").encode(code))
    with pytest.raises(ValueError, match=r"m\.json: .*save it as UTF-8"):
        Mixture.load(str(tmp_path / "m.json"))


def test_a_mixture_may_have_a_mark(tmp_path, two_modes):
    (tmp_path / "m.json").write_bytes(
        BOM.encode() + two_modes.read_bytes().replace(b",", b",\r\n")
    )
    assert Mixture.load(str(tmp_path / "m.json")).means.shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.jsonl", '{"caption": "red"}\r\n\r\n{"caption": null}\n{"caption": "a\\u2028b"}'),
        ("p.jsonl", '{"text": "red"}\n{"text": "a\u2028b"}'),
        ("p.csv", "n,prompt\n1,red\n2,\n3,a\u2028b\n"),
        ("p.tsv", "caption\nred\na\u2028b\n"),
        ("p.json", '["red", "", "a\\u2028b"]'),
        ("p.json", '[{"caption": "red"}, {"text": "a\\u2028b"}]'),
    ],
)
def test_prompts_in_tables(tmp_path, name, text):
    (tmp_path / name).write_bytes((BOM + text).encode())
    assert read_prompts(tmp_path / name) == ["red", "a\u2028b"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.jsonl", '{"alt": "red"}', r"no column 'caption'; choose data\.caption from alt"),
        ("p.jsonl", '{"caption": 3}', r"row 1: column 'caption' does not hold text"),
        ("p.jsonl", '{"caption": "\\ud800"}', r"line 1: half a character"),
        ("p.jsonl", '{"caption": ', r"line 1: not JSON"),
        ("p.jsonl", "[" * 10**5, r"line 1: not JSON: nested"),
        ("p.json", '{"a": 1}', r"a list of prompts expected"),
        ("p.json", "[3]", r"entry 1 is no text"),
        ("p.csv", "caption\nred,blue\n", r"line 2: 2 cells under 1 names"),
        ("p.csv", 'caption\n"red\n', r"line 2: unexpected end of data"),
        ("p.csv", "caption\n" + "r" * 200_000, r"field larger than field limit"),
        ("p.csv", "caption,caption\nred,blue\n", r"line 1 has the name 'caption' twice"),
        ("p.txt", "red\0blue", r"NUL at character 3"),
        ("p.txt", BOM + "\r\n \n", r"no prompts in it"),
        ("p.txt", "\x89PNG\r\n\x1a\n\0\0\0", r"NUL at"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, name, text, words):
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=rf"{name}: .*{words}") as caught:
        read_prompts(tmp_path / name)
    assert len(str(caught.value)) < 300
    assert len(str(caught.value).splitlines()) == 1


def odd_things(root):
    """Names that are no files, by what they are."""
    os.mkfifo(root / "fifo")
    (root / "folder").mkdir()
    (root / "link").symlink_to("nowhere")
    (root / "circle").symlink_to("circle")
    (root / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as file:
        file.bind(str(root / "socket"))
    return ["fifo", "folder", "link", "circle", "device", "socket"]


@pytest.mark.parametrize("ending", ["", ".txt", ".jsonl", ".csv", ".json", ".parquet", ".tar"])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, ending):
    for name in odd_things(tmp_path):
        place = tmp_path / f"{name}{ending}"
        if ending:
            (tmp_path / name).rename(place)
        with pytest.raises(ValueError, match=f"{name}{ending.replace('.', chr(92) + '.')}: "):
            read_prompts(place)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_system_takes(name):
    for read in (read_prompts, lambda path: list_pictures(path, "caption")):
        with pytest.raises(
            ValueError, match=r"(xxx|a\\x00b).*: (File name too long|embedded null)"
        ):
            read(name)


def test_a_short_parquet_of_much_text_is_bounded(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    words = pyarrow.array(["red", "x" * 10**6]).dictionary_encode()
    table = pyarrow.table({"caption": words.take(pyarrow.array([0, 1]))})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert [len(text) for text in read_prompts(tmp_path / "p.parquet")] == [3, 10**6]
    table = pyarrow.table({"caption": words.take(pyarrow.array([1] * 2000))})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert (tmp_path / "p.parquet").stat().st_size < 10**5
    with pytest.raises(ValueError, match=r"more than 512 Mi characters of prompts"):
        read_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize("value", [[["a"]], [{"a": 1}], [b"red"]])
def test_a_parquet_without_text_says_what_it_has(tmp_path, value):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"caption": value}), tmp_path / "p.parquet")
    with pytest.raises(
        ValueError, match=r"p\.parquet: no column of text or numbers, but .*caption"
    ):
        read_prompts(tmp_path / "p.parquet")


def test_a_giant_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "p.txt").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"p\.txt: 1048576 MiB; at most 256 are read"):
        read_prompts(tmp_path / "p.txt")


def test_lines_and_names():
    assert split_lines("a\r\rb\n\rc\r\n") == ["a", "", "b", "", "c", ""]
    assert shown("a\x1b[31m\udcff\nb") == r"a\x1b[31m\udcff\nb"


def test_a_marked_file_is_text(tmp_path):
    (tmp_path / "x").write_bytes(BOM.encode() + b"x")
    assert read_text(tmp_path / "x") == "x"
