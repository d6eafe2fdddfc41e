"""Hypothesis strategies that damage real files, and what may come of reading them.

Each strategy takes a real document and gives one with a few odd changes. `outcome` says what a
reader made of it: taken, refused in one line, or something that must not happen.
"""

from __future__ import annotations

import copy
import json
import struct
import time
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

__all__ = [
    "UnexpectedError",
    "damaged_bytes",
    "damaged_json",
    "damaged_safetensors",
    "damaged_yaml",
    "odd_overrides",
    "odd_values",
    "outcome",
]

WHOLE = [0, -1, 1, 2, 3, 1000, 10**6, 10**9, 2**31, -(2**31), 2**63, 2**64, 10**30, 10**400]
REAL = [0.0, -0.0, 0.5, 1.5, 1e-45, 1e39, -1e39, 1e308, float("inf"), float("-inf"), float("nan")]
NUMBERS = [*WHOLE, *REAL]
PATHS = [
    "",
    " ",
    "x",
    "../x",
    "/etc/passwd",
    "C:x",
    "a\\b",
    "..",
    "latest",
    "x" * 300,
    "x" * 20_000,
]
MARKUP = [
    "[/x]",
    "[bold]",
    "\x1b[31m",
    "\0",
    "\u202e",
    "\u2028",
    "é",
    "😀",
    "%",
    "$x^{$",
    ":smile:",
]
YAML = [
    "${oc.env:HOME}",
    "${",
    "!!python/x",
    "NaN",
    "null",
    "true",
    "~",
    "*a",
    "&a",
    "{}",
    "[]",
    "0",
]
TEXTS = [*PATHS, *MARKUP, *YAML]

odd_values = st.recursive(
    st.sampled_from([None, True, False, *NUMBERS, *TEXTS])
    | st.integers()
    | st.floats()
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(TEXTS), inner, max_size=3)
    ),
    max_leaves=6,
)
"""Values that a careless reader may stumble over."""


def _places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a document."""
    if isinstance(data, dict):
        items: Any = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    else:
        return []
    found = [(*path, key) for key, _ in items]
    return found + [p for key, value in list(items) for p in _places(value, (*path, key))]


def _parent(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        data = data[key]
    return data


@st.composite
def _changed(draw: Any, document: Any) -> Any:
    """The document with one to three changes: values replaced, keys gone, added, swapped."""
    data = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(data)
        if not places:
            break
        path = draw(st.sampled_from(places))
        parent, key = _parent(data, path), path[-1]
        kind = draw(st.sampled_from(["replace", "scale", "remove", "add", "swap", "nest"]))
        value = parent[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if kind == "scale" and number:
            parent[key] = draw(st.sampled_from(NUMBERS))
        elif kind == "remove":
            del parent[key]
        elif kind == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(TEXTS))] = value
        elif kind == "swap":
            other = draw(st.sampled_from(places))
            try:
                parent[key] = copy.deepcopy(_parent(data, other)[other[-1]])
            except (KeyError, IndexError, TypeError):
                parent[key] = None
        elif kind == "nest":
            parent[key] = [value] * draw(st.integers(0, 5))
        else:
            parent[key] = draw(odd_values)
    return data


@st.composite
def damaged_json(draw: Any, document: Any) -> bytes:
    """JSON text of a changed document; now and then a key twice, deep nesting, or cut bytes."""
    data = draw(_changed(document))
    text = json.dumps(data, ensure_ascii=draw(st.booleans()))
    kind = draw(st.sampled_from(["plain"] * 6 + ["twice", "deep", "huge", "bytes"]))
    if kind == "twice" and text.startswith("{") and len(data) > 0:
        key = draw(st.sampled_from(sorted(map(str, data))))
        text = (
            "{" + f"{json.dumps(key)}: {draw(st.sampled_from(['0', '[]', 'null']))}, " + text[1:]
        )
    elif kind == "deep":
        text = text.replace(":", ":" + draw(st.sampled_from(["[", '{"a":'])) * 5000, 1)
    elif kind == "huge":
        text = text.replace("1", draw(st.sampled_from(["1e999", "9" * 500, "-1e999", "NaN"])), 1)
    encoded = text.encode("utf-8", "surrogatepass")
    return draw(damaged_bytes(encoded)) if kind == "bytes" else encoded


@st.composite
def damaged_bytes(draw: Any, data: bytes) -> bytes:
    """Bytes with a flip, a cut, a run of zeros, a hole or an insertion."""
    if not data:
        return draw(st.binary(max_size=64))
    at, length = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 4096))
    before, hit, after = data[:at], data[at : at + length], data[at + length :]
    flipped = bytes([data[at] ^ 1 << draw(st.integers(0, 7))])
    kinds = {
        "flip": before + flipped + data[at + 1 :],
        "cut": before,
        "zeros": before + bytes(len(hit)) + after,
        "hole": before + after,
        "insert": before + draw(st.binary(min_size=1, max_size=64)) + data[at:],
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]


@st.composite
def damaged_safetensors(draw: Any, data: bytes) -> bytes:
    """A safetensors file with a changed header, header length or body."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = draw(st.sampled_from(["header", "length", "body", "bytes"]))
    if kind == "bytes":
        return draw(damaged_bytes(data))
    if kind == "body":
        return data[: 8 + length] + draw(damaged_bytes(body))
    text = data[8 : 8 + length]
    if kind == "header":
        text = draw(damaged_json(header))
        length = len(text)
    else:
        length = draw(st.sampled_from([0, 1, length - 1, length + 1, 2**31, 2**62, 2**64 - 1]))
    return struct.pack("<Q", length) + text + body


@st.composite
def damaged_yaml(draw: Any, document: Any) -> str:
    """YAML text of a changed document, with anchors, tags, tabs and bombs now and then."""
    import yaml

    data = draw(_changed(document))
    try:
        text = yaml.safe_dump(data, allow_unicode=draw(st.booleans()))
    except yaml.YAMLError:
        text = json.dumps(data)
    lines = text.splitlines() or [""]
    at = draw(st.integers(0, len(lines)))
    extra = draw(
        st.sampled_from(
            [None] * 6
            + ["a: &a [*a]", "<<: *nobody", "? [1, 2]\n: 3", "x: !!python/object:os.system {}"]
            + ["\tx: 1", "x: !!binary aGk=", "x: 2001-01-01", "x: !!set {a}", "1: 2", "~: 1"]
            + ["a: &a [x, x]\nb: &b [" + "*a, " * 50 + "]\nc: [" + "*b, " * 50 + "]", "x: ${a.b}"]
            + [
                "x: " + "[" * 500,
                "base: [a]",
                "base: ../../etc/passwd",
                "name: [/x]",
                "- 1",
                "---",
            ]
        )
    )
    return "\n".join(lines[:at] + ([extra] if extra else []) + lines[at:])


def odd_overrides(keys: list[str]) -> st.SearchStrategy[list[str]]:
    """Words of a command line that set keys of a recipe, or some that are none."""
    key = st.sampled_from(
        [*keys, "x", "", "a.b.c", "train", "train..steps", "objective[0]", "." * 50]
    )
    value = st.sampled_from([*map(str, NUMBERS), *TEXTS]) | odd_values.map(json.dumps)
    return st.lists(st.tuples(key, value).map("=".join), min_size=1, max_size=3)


class UnexpectedError(AssertionError):
    """What must not come of any input: another exception, a message of many lines, or a wait."""


def outcome(read: Callable[[], Any], seconds: float = 30.0, longest: int = 2000) -> str:
    """Say "taken", or "refused" for a ValueError of one short line; anything else is an error."""
    start = time.perf_counter()
    try:
        read()
        result = "taken"
    except (ValueError, FloatingPointError) as error:
        line = str(error)
        if type(error).__module__.startswith("pydantic") or not line:
            raise UnexpectedError(
                f"not in our words: {type(error).__name__}: {line[:300]}"
            ) from error
        if len(line) > longest:
            raise UnexpectedError(f"a refusal of {len(line)} characters: {line[:300]}") from error
        result = "refused"
    except Exception as error:
        raise UnexpectedError(f"{type(error).__name__}: {str(error)[:300]}") from error
    if time.perf_counter() - start > seconds:
        raise UnexpectedError(f"{result} after {time.perf_counter() - start:.0f} s")
    return result
