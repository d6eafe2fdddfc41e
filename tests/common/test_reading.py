"""JSON and YAML are bounded before anything is built of them."""

import json
import os
import time

import pytest
import yaml

from edgedistill.common.files import read_json, write_json
from edgedistill.common.reading import MAX_YAML_NODES, check_yaml, parse_json, read_bytes, short
from edgedistill.recipes.files import read
from edgedistill.recipes.loading import load

DEEP = 100_000


def bomb(levels, width):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, "[" * 65 + "]" * 65])
def test_deep_json_is_refused(text):
    with pytest.raises(ValueError, match=r"nested deeper than 64 levels|not|Expecting"):
        parse_json(text)


def test_json_of_some_depth_is_read():
    text = "[" * 60 + "]" * 60
    assert json.dumps(parse_json(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "key 'a' twice"),
        ('{"b": {"a": 1, "a": 2}}', "key 'a' twice"),
        ('{"a": 1e999}', "1e999 is no finite number"),
        ('{"a": -1e999}', "no finite number"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": Infinity}', "Infinity is no number"),
        ('{"a": ' + "9" * 400 + "}", "no integer below"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    ],
)
def test_strict_json_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text, strict=True)


def test_a_byte_order_mark_is_skipped():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_json_files_are_refused_by_name(tmp_path):
    file = tmp_path / "x.json"
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"pipe.json: not readable as JSON: is no regular file"):
        read_json(tmp_path / "pipe.json")
    file.write_text("[" * DEEP)
    with pytest.raises(ValueError, match=r"x.json: not readable as JSON: nested deeper"):
        read_json(file)
    file.write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(ValueError, match=r"x.json: .*has 109 bytes; at most 50"):
        read_json(file, 50)
    with pytest.raises(ValueError, match="no such file"):
        read_json(tmp_path / "none.json")


def test_a_sparse_file_of_a_terabyte_is_not_read(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="1099511627776 bytes"):
        read_bytes(tmp_path / "x")


@pytest.mark.parametrize(
    "data",
    [{"a": {"b": [1.0, float("nan")]}}, {"a": {"b": (0, float("inf"))}}],
)
def test_no_json_holds_what_is_not_finite(tmp_path, data):
    with pytest.raises(ValueError, match=r"x.json: a.b.1 is (nan|inf)"):
        write_json(tmp_path / "x.json", data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        bomb(9, 9),
        bomb(30, 2),
        "a: &a {b: [*a, *a]}",
        "a: &a [*a]",
        "a: *never",
        "[" * DEEP,
        "a: " + "{b: " * 1000,
        "".join("  " * i + f"k{i}:\n" for i in range(100)),
        "- x\n" * (MAX_YAML_NODES + 1),
        "a: " + "x" * 2**20,
        "base: &b {k: 1}\n"
        + "\n".join(f"k{i}: {{<<: [{', '.join(['*b'] * 999)}]}}" for i in range(40)),
    ],
)
def test_yaml_that_would_take_memory_is_refused_at_once(text):
    start = time.perf_counter()
    with pytest.raises((ValueError, yaml.YAMLError)):
        check_yaml(text)
    assert time.perf_counter() - start < 20


def test_a_recipe_of_many_values_is_refused_in_one_line_at_once(tmp_path):
    file, text = tmp_path / "r.yaml", "train: {steps: 3}\nname: [" + "1, " * 300_000 + "1]\n"
    file.write_text(text)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"r\.yaml: more than {MAX_YAML_NODES} values") as error:
        read(file)
    with pytest.raises(ValueError, match=f"more than {MAX_YAML_NODES} values") as other:
        load("mixture-lcm", ["data.prompts=[" + "1," * 300_000 + "1]"])
    assert time.perf_counter() - start < 10
    assert all("\n" not in str(e.value) and len(str(e.value)) < 300 for e in (error, other))


def test_plain_aliases_are_taken():
    check_yaml("a: &a {lr: 1.0e-4}\nb: *a\nc: {<<: *a, d: &d [1, 2]}\ne: [*d, *d]")


def test_long_values_are_cut_in_messages():
    assert short("abc") == "'abc'"
    assert len(short("x" * 10**6)) < 70
    assert short(list(range(1000))).startswith("[0, 1, 2")
    assert short(1 << 99999) == "a number of 100000 bits"
