"""Tables fit their width: nothing is cut, and a pipe has a row a line."""

import pytest
from rich.cells import cell_len
from rich.table import Table

from edgedistill.common.tables import as_text, fit, show

NAMES = ["fd", "text-image", "memorization, pixels", "text-image ratio", "recall", "precision"]


def figures(count: int = 20) -> Table:
    table = Table(title="figures", box=None)
    table.add_column("subject", no_wrap=True)
    for index in range(count):
        table.add_column(f"{NAMES[index % len(NAMES)]} {index}", justify="right")
    for name in ("teacher", "bundle:openvino-int8-hybrid", "東京"):
        table.add_row(name, *(f"0.{index:04d}" for index in range(count)))
    return table


def lines(table, width):
    return [as_text(piece).splitlines() for piece in fit(table, width)]


@pytest.mark.parametrize("width", [40, 80, 120, 400])
def test_a_wide_table_goes_on_below_and_keeps_every_figure(width):
    pieces = lines(figures(), width)
    text = "\n".join(line for piece in pieces for line in piece)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "…" not in text
    words = text.split()
    assert all(words.count(f"0.{index:04d}") == 3 for index in range(20))
    assert (len(pieces) > 1) == (width < 400)
    assert all(piece[0].startswith("subject") or "subject" in "".join(piece) for piece in pieces)


def test_without_a_limit_a_row_is_a_line_without_padding():
    (piece,) = lines(figures(), None)
    assert len(piece) == 4
    assert all(line == line.rstrip() for line in piece)
    assert piece[1].split() == ["teacher", *(f"0.{index:04d}" for index in range(20))]


def test_texts_are_wrapped_at_words_and_long_words_folded():
    table = Table("recipe", "what it makes")
    table.add_row("one", "a long description of what the recipe makes " * 3)
    table.add_row("x" * 100, "[red] :smile:")
    (piece,) = lines(table, 60)
    assert all(cell_len(line) <= 60 for line in piece)
    assert "".join(piece).count("x") >= 100
    assert any("[red] :smile:" in line for line in piece)


def test_columns_decides_the_width_of_a_file(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    show(figures(8))
    assert max(map(len, capsys.readouterr().out.splitlines())) > 80
    monkeypatch.setenv("COLUMNS", "80")
    show(figures(8))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_an_empty_table_is_its_heads():
    (piece,) = lines(Table("a", "b"), 80)
    assert piece == ["a  b"]
