"""Shards as webdataset 1.0.2 reads them, and what is wrong with them by name."""

import io
import tarfile

import pytest
from PIL import Image

from edgedistill.data import read_prompts
from edgedistill.data.pictures import list_pictures
from edgedistill.data.tars import read_samples


def png():
    data = io.BytesIO()
    Image.new("RGB", (20, 20)).save(data, "PNG")
    return data.getvalue()


PNG = png()


def pack(path, files, form=tarfile.PAX_FORMAT, **fields):
    """A tar of (name, bytes) in their order."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            data = data.encode() if isinstance(data, str) else data
            info.size, info.pax_headers = len(data), dict(fields)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(path, words="captions"):
    found = {}
    for record in list_pictures(path, "caption", words).records():
        try:
            found[record.name] = record.read()[1]
        except (ValueError, tarfile.TarError) as error:
            found[record.name] = error
    return found


@pytest.mark.parametrize(
    "files",
    [
        [("._0.png", b"\0"), ("0.png", PNG), ("._0.txt", b"\0"), ("0.txt", "a cat")],
        [("d/._0.png", b"\0"), ("d/0.png", PNG), ("d/._0.txt", b"\0"), ("d/0.txt", "a cat")],
        [("0.png", PNG), ("__MACOSX/._0.txt", b"\0"), ("0.txt", "a cat")],
        [("0.png", PNG), ("__MACOSX/0.txt", "x"), ("0.txt", "a cat")],
        [("0.png", PNG), ("README", "x"), ("0.txt", "a cat")],
        [("0.png", PNG), (".DS_Store", "x"), ("0.txt", "a cat")],
        [("0.png", PNG), ("__meta__/x.json", "{}"), ("0.txt", "a cat")],
        [("./0.png", PNG), ("./0.txt", "a cat")],
        [(".//0.png", PNG), (".//0.txt", "a cat")],
        [("a.b/0.png", PNG), ("a.b/0.txt", "a cat")],
        [("0.PNG", PNG), ("0.Txt", "a cat")],
        [("0.png", PNG), ("0.seg.png", b"x"), ("0.txt", "a cat")],
        [("0.seg.txt", "x"), ("0.png", PNG), ("0.txt", "a cat")],
        [("0.image.png", PNG), ("0.text.txt", "a cat")],
        [("0.png", PNG), ("0.json", '{"caption": "a cat"}')],
        [("0.png", PNG), ("0.txt", "\ufeffa cat\r\n")],
        [("0.png", PNG), ("0.txt", b""), ("0.json", '\ufeff{"caption": "a cat"}')],
        [
            ("x" * 300 + "/" + "y" * 200 + ".png", PNG),
            ("x" * 300 + "/" + "y" * 200 + ".txt", "a cat"),
        ],
        [("caf\u00e9.png", PNG), ("caf\u00e9.txt", "a cat")],
    ],
)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_one_sample(tmp_path, files, form):
    path = pack(tmp_path / "t.tar", files, form)
    assert [*read(path).values()] == ["a cat"]
    assert read_prompts(path) == ["a cat"]


def test_headers_of_others_folders_and_links_part_nothing(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w", pax_headers={"comment": "x"}) as tar:
        for name, data, kind in [
            ("d", b"", tarfile.DIRTYPE),
            ("d/0.png", PNG, tarfile.REGTYPE),
            ("d/l.txt", b"", tarfile.SYMTYPE),
            ("d/h.txt", b"", tarfile.LNKTYPE),
            ("d/f.txt", b"", tarfile.FIFOTYPE),
            ("d", b"", tarfile.DIRTYPE),
            ("d/0.txt", b"a cat", tarfile.REGTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
            info.pax_headers = {"mtime": "1.5", "SCHILY.xattr.x": "y"}
            tar.addfile(info, io.BytesIO(data))
    assert read(tmp_path / "t.tar") == {"t.tar/d/0.png": "a cat"}


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ([("0.png", PNG), ("0.txt", "a"), ("0.txt", "b")], r"\.txt is twice"),
        ([("0.png", PNG), ("0.PNG", PNG), ("0.txt", "a")], r"\.png is twice"),
        ([("0.a.png", PNG), ("0.b.png", PNG), ("0.txt", "a")], r"which of \.a\.png, \.b\.png"),
        ([("0.png", PNG), ("0.a.txt", "a"), ("0.b.txt", "b")], r"which of \.a\.txt, \.b\.txt"),
        ([("0.mp4", b"x"), ("0.txt", "a")], r"no picture among \.mp4, \.txt"),
        ([("0.png", PNG), ("0.json", "[" * 10**5)], r"caption not JSON: nested"),
        ([("0.png", PNG), ("0.json", '{"caption": "\\ud800"}')], r"half a character"),
        ([("0.png", PNG), ("0.txt", "a".encode("utf-16"))], r"caption UTF-16 text"),
    ],
)
def test_what_cannot_be_told_is_named_and_the_next_is_read(tmp_path, files, what):
    path = pack(tmp_path / "t.tar", [*files, ("1.png", PNG), ("1.txt", "a dog")])
    first, second = read(path).values()
    assert second == "a dog"
    with pytest.raises(ValueError, match=what):
        raise first


def test_a_sparse_file_s_claim_is_bounded(tmp_path):
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    fields |= {"GNU.sparse.name": "0.png", "GNU.sparse.realsize": str(2**42)}
    data = f"1\n0\n{len(PNG)}\n".encode().ljust(512, b"\0") + PNG
    path = pack(
        tmp_path / "t.tar", [("x", data), ("1.png", PNG), ("1.txt", "a dog")][:1], **fields
    )
    with pytest.raises(ValueError, match=r"4194304 MiB by its header; at most 256"):
        raise read(path)["t.tar/0.png"]


def test_classes(tmp_path):
    files = [("0.jpg", PNG), ("0.cls", "7\n"), ("0.txt", "a cat"), ("1.jpg", PNG)]
    path = pack(tmp_path / "t.tar", [*files, ("1.json", '{"caption": 3}')])
    assert [*read(path, "classes").values()] == ["7", "3"]
    assert [*read(path).values()] == ["a cat", ""]
    assert [*read(path, "none").values()] == ["", ""]


@pytest.mark.parametrize(
    ("start", "name"), [(b"\x1f\x8b", "gzip"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\0", "xz")]
)
def test_a_compressed_tar_says_so(tmp_path, start, name):
    (tmp_path / "t.tar").write_bytes(start + b"\0" * 2000)
    with pytest.raises(ValueError, match=rf"t\.tar: compressed with {name}; uncompress it"):
        read_prompts(tmp_path / "t.tar")


def test_damage_anywhere_raises_nothing_else(tmp_path):
    import random

    path = pack(tmp_path / "t.tar", [("0.png", PNG), ("0.txt", "a cat"), ("1.txt", "b")], a="b")
    good, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(good)
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            for sample in read_samples(path):
                for member in sample.members.values():
                    member()
        except (ValueError, tarfile.TarError):
            pass
        read(path)
