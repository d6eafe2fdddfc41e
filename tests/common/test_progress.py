"""What the command line prints of others' texts is those texts, never markup."""

import io

import pytest
from rich.table import Table

from edgedistill.common import progress
from edgedistill.common.progress import Bar, bar, console, say, visible

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


def test_a_bar_on_a_terminal_escapes_its_title(printed, monkeypatch):
    monkeypatch.setattr(console, "_force_terminal", True)
    with bar("a\x1b]0;x\x07", 2):
        pass
    assert "\x1b]0" not in printed.getvalue()
    assert "a\\x1b]0;x\\x07" in printed.getvalue()


def test_letters_of_all_scripts_stay():
    text = "käse 東京 العربية 👩‍👩‍👧 é"
    assert visible(text) == text
