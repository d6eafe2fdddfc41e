"""What the command line prints of others' texts is those texts, never markup."""

import io
import os
import subprocess
import sys
import time

import pytest
from rich.table import Table

from edgedistill.common import progress
from edgedistill.common.progress import (
    Bar,
    bar,
    console,
    hush,
    late_bar,
    rate,
    say,
    visible,
    visible_lines,
)
from edgedistill.evaluation.tables import heading

TEXTS = ["[/x]", "a[bold]b", ":smile:", "[link=x]y[/link]", "run [v2]", "\\[x]", "{task.id}"]


@pytest.fixture
def printed(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(console, "_file", stream)
    monkeypatch.setattr(console, "_width", 200)
    return stream


@pytest.mark.parametrize("text", TEXTS)
def test_lines_tables_and_bars_show_a_text_as_it_is(printed, monkeypatch, text):
    say(text)
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    table.add_column(text, footer=text)
    console.print(table)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    Bar(text, 2, 0, None).update(1, text)
    monkeypatch.setattr(console, "_force_terminal", True)
    with bar(text, 2) as live:
        live.update(1, text)
    assert printed.getvalue().count(text) >= 8


@pytest.mark.parametrize(
    "hidden", ["\x1b]0;x\x07", "\x9b31m", "\u202e", "\u2028", "\r", "\n", "\ud800"]
)
def test_control_characters_are_shown_escaped(printed, monkeypatch, hidden):
    say(f"a{hidden}b")
    table = Table("head", title=f"t{hidden}t")
    table.add_row(f"c{hidden}d")
    console.print(table)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    Bar(f"e{hidden}f", 2, 0, None).update(1)
    lines = printed.getvalue()
    assert f"a{visible(hidden)}b" in lines
    assert f"c{visible(hidden)}d" in lines
    assert f"e{visible(hidden)}f" in lines
    assert hidden == "\n" or hidden not in lines


def test_tables_in_a_file_keep_their_headings_and_figures():
    """Those of `evaluate`, with a CLIP model and captions: the widest that there are."""
    program = """
from edgedistill.evaluation.tables import tables
from edgedistill.common.tables import show
row = dict.fromkeys(%r, 0.0123)
for table in tables({"bundle:ort-int8": {"calls": 50, **row, "samples": 512}}):
    show(table)
"""
    keys = ["fd", "kid", "text_image_score", "retrieval_top1", "diversity", "fd_ratio"]
    keys += ["text_image_ratio", "diversity_ratio"]
    command = [sys.executable, "-c", program % keys]
    plain = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    assert done.stderr == ""
    said = done.stdout
    assert "\u2026" not in said
    (heads,) = [line for line in said.splitlines() if "subject" in line]
    assert all(heading(key) in heads for key in keys)
    assert said.count("0.0123") == len(keys)


@pytest.mark.parametrize(
    ("speed", "words"), [(0.0, ""), (0.04, "25.0 s/it"), (0.999, "1.0 s/it"), (12.34, "12.3/s")]
)
def test_a_slow_rate_is_told_in_seconds_for_each(printed, monkeypatch, speed, words):
    assert rate(speed) == words
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    meter = Bar("work", 10, 0, None)
    meter._begin = time.perf_counter() - (1 / speed if speed else 0)
    meter.update(1 if speed else 0)
    assert words in printed.getvalue()
    assert "0.0/s" not in printed.getvalue()


def test_only_the_first_process_shows_bars_and_none_when_hushed(printed, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)

    def shown():
        with bar("work", 2) as meter:
            meter.update(1)
        return printed.getvalue()

    monkeypatch.setenv("RANK", "1")
    assert shown() == ""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(progress, "_hushed", [False])
    hush(True)
    assert shown() == ""
    hush(False)
    assert shown().startswith("work 1/2")


@pytest.mark.parametrize("parts", [True, False])
def test_a_long_part_is_told_when_it_begins(printed, parts):
    with bar("work", 3, parts=parts) as meter:
        for done, part in enumerate(("first", "second", "second")):
            meter.step(done, 3, part)
    lines = printed.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == (["0/3", "1/3"] if parts else [])
    assert all(part in line for line, part in zip(lines, ("first", "second"), strict=False))


def test_a_bar_inside_another_one_stays_silent(printed, monkeypatch):
    monkeypatch.setattr(console, "_force_terminal", True)
    with bar("outer", 2) as outer:
        with late_bar("inner", 2) as update:
            update(1)
        outer.update(2)
    assert "outer" in printed.getvalue()
    assert "inner" not in printed.getvalue()


def test_a_text_of_many_lines_keeps_them():
    assert visible_lines("a: 1\n\tb\x1b[0m\r\n\x85") == "a: 1\n\tb\\x1b[0m\\r\n\\x85"
    assert visible_lines("plain") == "plain"
    for value in (None, 3, ["\x1b"]):
        assert visible_lines(value) is value


def test_a_bar_on_a_terminal_escapes_its_title(printed, monkeypatch):
    monkeypatch.setattr(console, "_force_terminal", True)
    with bar("a\x1b]0;x\x07", 2):
        pass
    assert "\x1b]0" not in printed.getvalue()
    assert "a\\x1b]0;x\\x07" in printed.getvalue()


def test_letters_of_all_scripts_stay():
    text = "käse 東京 العربية 👩‍👩‍👧 é"
    assert visible(text) == text
