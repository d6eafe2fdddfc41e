"""Folders of pictures as Hugging Face's imagefolder reads them; what does not match is told."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from edgedistill.data.pictures import list_pictures


def put(root, *names, size=20):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {".png": "PNG", ".jpg": "JPEG"}.get((root / name).suffix, "PNG")
        Image.new("RGB", (size, size)).save(root / name, kind)


def rows(file, *pairs, key="text", name="file_name"):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        lines = [json.dumps({name: n, key: t}, ensure_ascii=False) for n, t in pairs]
        file.write_text("\n".join(lines), encoding="utf-8")
    elif file.suffix == ".csv":
        lines = [f"{name},{key}", *(f"{n},{t}" for n, t in pairs)]
        file.write_text("\n".join(lines), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = {name: [n for n, _ in pairs], key: [t for _, t in pairs]}
        parquet.write_table(pyarrow.table(columns), file)


def read(root, words="captions", key="caption"):
    listing = list_pictures(root, key, words)
    return {r.name: r.read()[1] for r in listing.records()}, listing.notes


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("where", "name"),
    [
        (".", "train/x.png"),
        (".", "./train/x.png"),
        (".", "train\\x.png"),
        (".", ".\\train\\x.png"),
        (".", "train//x.png"),
        (".", "train/../train/x.png"),
        ("train", "x.png"),
        ("train", "./x.png"),
        ("train", "../train/x.png"),
        (".", " train/x.png "),
    ],
)
def test_a_row_s_name_stands_where_its_file_does(tmp_path, kind, where, name):
    put(tmp_path, "train/x.png")
    rows(tmp_path / where / f"metadata.{kind}", (name, "a cat"))
    assert read(tmp_path) == ({"train/x.png": "a cat"}, ())


@pytest.mark.parametrize("name", ["image_file_name", "picture_file_name"])
@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_usual_columns(tmp_path, name, key):
    put(tmp_path, "x.png")
    rows(tmp_path / "metadata.jsonl", ("x.png", "a cat"), name=name, key=key)
    assert read(tmp_path)[0] == {"x.png": "a cat"}


def test_the_column_is_the_recipe_s(tmp_path):
    put(tmp_path, "x.png")
    row = {"file_name": "x.png", "text": "a cat", "alt": "a dog"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert read(tmp_path, key="alt")[0] == {"x.png": "a dog"}
    with pytest.raises(
        ValueError, match=r"no column 'none'; choose data\.caption from file_name,"
    ):
        read(tmp_path, key="none")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_match_in_either_form_of_unicode(tmp_path, form):
    name = "caf\u00e9 \U0001f34e.png"
    put(tmp_path, unicodedata.normalize("NFD" if form == "NFC" else "NFC", name))
    rows(tmp_path / "metadata.jsonl", (unicodedata.normalize(form, name), "red"))
    assert [*read(tmp_path)[0].values()] == ["red"]
    assert read(tmp_path)[1] == ()


def test_the_nearest_file_counts_and_a_caption_s_own_before_it(tmp_path):
    put(tmp_path, "a/x.png", "a/y.png")
    rows(tmp_path / "metadata.jsonl", ("a/x.png", "far"), ("a/y.png", "far"))
    rows(tmp_path / "a" / "metadata.csv", ("x.png", "near"), ("y.png", "near"))
    (tmp_path / "a" / "y.txt").write_text("own")
    assert read(tmp_path)[0] == {"a/x.png": "near", "a/y.png": "own"}


def test_what_does_not_match_is_counted_and_named(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png", "d.png", "sub/e.png")
    (tmp_path / "d.txt").write_text("red")
    given = [("a.png", "cat"), ("A.PNG", "cat"), ("/etc/x.png", "x"), ("../b.png", "x")]
    rows(tmp_path / "metadata.jsonl", *given, ("e.png", "x"), ("a.png", "dog"))
    found, notes = read(tmp_path)
    assert found == {"a.png": "cat", "b.png": "b", "c.png": "c", "d.png": "red", "sub/e.png": "e"}
    assert notes == (
        "4 rows of metadata.jsonl match no picture: ../b.png, /etc/x.png, A.PNG, ...",
        "1 pictures have two captions, the first counts: a.png",
        "3 of 5 pictures match no row of metadata.jsonl, so their names are their captions: "
        "b.png, c.png, sub/e.png",
    )


def test_names_as_captions_are_told(tmp_path):
    put(tmp_path, "a.png", "b.png")
    assert read(tmp_path)[1] == (
        "2 of 2 pictures match no caption file, so their names are their captions: a.png, b.png",
    )
    assert read(tmp_path, "none") == ({"a.png": "", "b.png": ""}, ())


def test_two_tables_in_one_folder_are_refused(tmp_path):
    put(tmp_path, "a.png")
    for kind in ("csv", "jsonl"):
        rows(tmp_path / f"metadata.{kind}", ("a.png", "red"))
    with pytest.raises(ValueError, match=r"metadata\.csv and metadata\.jsonl; keep one of them"):
        read(tmp_path)


def test_a_folder_a_class(tmp_path):
    put(tmp_path, "7/a.png", "7/b.png", "train/cat/c.png", "cat/d.png", "e.png")
    (tmp_path / "7" / "b.txt").write_text("3")
    rows(tmp_path / "cat" / "metadata.csv", ("d.png", "5"), key="label")
    found, notes = read(tmp_path, "classes")
    assert found == {
        "7/a.png": "7",
        "7/b.png": "3",
        "train/cat/c.png": "cat",
        "cat/d.png": "5",
    } | {"e.png": "e"}
    assert len(notes) == 1
    assert notes[0].endswith("their captions: e.png")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_classes_may_be_numbers(tmp_path, kind):
    put(tmp_path, "a.png", "b.png")
    rows(tmp_path / f"metadata.{kind}", ("a.png", 3), ("b.png", 0), key="label")
    assert read(tmp_path, "classes")[0] == {"a.png": "3", "b.png": "0"}


def test_pictures_to_test_on_are_left_out_and_told(tmp_path):
    put(tmp_path, "train/a.png", "test/b.png", "Validation/c.png", "other/d.png")
    found, notes = read(tmp_path)
    assert [*found] == ["other/d.png", "train/a.png"]
    assert notes[0] == (
        "2 files of test and validation are left out, since there is train; name another folder "
        "to learn from them"
    )
    assert [*read(tmp_path / "test")[0]] == ["b.png"]


def test_links_are_followed_and_circles_end(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    put(root, "a.png")
    put(other, "b.png", "deep/c.png")
    (root / "linked").symlink_to(other)
    (root / "again").symlink_to(root)
    (other / "deep" / "up").symlink_to(other)
    (root / "file.png").symlink_to(other / "b.png")
    (root / "nowhere.png").symlink_to("nothing")
    (root / "circle.png").symlink_to("circle.png")
    found, notes = read(root)
    assert [*found] == ["a.png", "file.png", "linked/b.png", "linked/deep/c.png"]
    assert notes[0] == "2 names are no files: nowhere.png, circle.png"
    assert "2 links lead to folders that are read anyway: again, linked/deep/up" in notes[1]


def test_a_hundred_folders_that_link_to_each_other(tmp_path):
    for i in range(12):
        put(tmp_path, f"{i}/{i}.png")
        for j in range(12):
            (tmp_path / str(i) / f"to{j}").symlink_to(tmp_path / str(j))
    assert len(read(tmp_path)[0]) == 12


def test_endings_and_names_of_every_system(tmp_path):
    put(tmp_path, "a.PNG", "b.Jpg", "c.JPEG", "d.jfif", "e.gif", "f.bmp", "g.tif", "h.heic")
    put(
        tmp_path,
        "sub.png/i.png",
        "._a.png",
        ".hidden/x.png",
        "__MACOSX/a.png",
        "__pycache__/x.png",
    )
    for name in ("Thumbs.db", "desktop.ini", "x.tar.gz", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "wait.png")
    found, notes = read(tmp_path)
    plain = ["a.PNG", "b.Jpg", "c.JPEG", "d.jfif", "e.gif", "f.bmp", "g.tif"]
    assert [*found] == [*plain, "sub.png/i.png"]
    assert notes[:2] == (
        "1 names are no files: wait.png",
        "2 files are of kinds that are not read: h.heic, x.tar.gz",
    )


def test_a_name_that_is_no_text(tmp_path):
    put(tmp_path, "a.png")
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff\x1b.png")
    (tmp_path / "a.png").rename(odd)
    listing = list_pictures(tmp_path, "caption")
    (record,) = listing.records()
    assert record.name == r"\udcff\x1b.png"
    with pytest.raises(ValueError, match="its name is not to be printed"):
        record.read()
    Path(odd[:-4] + ".txt").write_text("red")
    assert [r.read()[1] for r in list_pictures(tmp_path, "caption").records()] == ["red"]
    "".join(listing.notes).encode()


@pytest.mark.parametrize("name", ["x.heic", "notes.txt", "x.zip"])
def test_a_folder_of_other_files_says_so(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"none of \.jpg, .* in it") as caught:
        list_pictures(tmp_path, "caption")
    assert (name in str(caught.value)) == (name != "notes.txt")
