"""Pages that are made from code are up to date, and say what the code says."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field

from edgedistill.common.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)


@pytest.fixture(scope="module")
def written():
    return generate.pages()


def test_the_pages_are_up_to_date(written):
    old = [name for name in written if (DOCS / "reference" / name).read_text() != written[name]]
    assert old == [], "run make reference"


def test_a_page_that_is_changed_or_missing_is_named(written, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "pages", lambda: written)
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    assert generate.stale(tmp_path) == []
    (tmp_path / "cli.md").write_text(written["cli.md"].replace("edgedistill plan", "plan"))
    (tmp_path / "recipes.md").unlink()
    assert generate.stale(tmp_path) == ["cli.md", "recipes.md"]


class Inner(Settings):
    """What is inside."""

    depth: Literal["a", "b"] = "a"
    """How deep,
    or not."""


class Outer(Settings):
    """What is outside."""

    least: int = Field(gt=2, le=10)
    """At the least | at the most."""
    each: tuple[float, float] | None = None
    inner: tuple[Inner, ...] = ()


def test_a_section_is_a_table_of_its_fields():
    assert generate.section_lines(Outer, "outer") == [
        "## outer",
        "",
        "What is outside.",
        "",
        "| key | type | default | range | meaning |",
        "| --- | --- | --- | --- | --- |",
        "| `outer.least` | integer | required | above 2, at most 10 |"
        " At the least \\| at the most. |",
        "| `outer.each` | [number, number] or null | null |  |  |",
        "| `outer.inner` | list of section Inner | `[]` |  |  |",
        "",
        "### outer.inner",
        "",
        "What is inside.",
        "",
        "| key | type | default | meaning |",
        "| --- | --- | --- | --- |",
        "| `outer.inner.depth` | `a`, `b` | `a` | How deep, or not. |",
        "",
    ]


def test_a_command_has_its_arguments_options_and_example():
    app = typer.Typer()

    @app.command()
    def draw_it(
        what: Annotated[str, typer.Argument(help="What.")],
        kinds: Annotated[list[str] | None, typer.Option("--as", help="Kinds.")] = None,
        count: Annotated[int, typer.Option(min=1, help="Pictures.")] = 2,
        strict: Annotated[bool, typer.Option(help="Refuse.")] = True,
        again: Annotated[bool, typer.Option("--again", help="Repeat.")] = False,
    ) -> None:
        """Draw.

        Example: edgedistill draw-it x
        """

    assert generate.command_page(app).splitlines()[6:] == [
        "## edgedistill draw-it",
        "",
        "Draw.",
        "",
        "```",
        "edgedistill draw-it x",
        "```",
        "",
        "| argument | meaning |",
        "| --- | --- |",
        "| `WHAT` | What. |",
        "",
        "| option | default | range | meaning |",
        "| --- | --- | --- | --- |",
        "| `--as TEXT` |  |  | Kinds. Can be given several times. |",
        "| `--count N` | `2` | at least 1 | Pictures. |",
        "| `--strict / --no-strict` | `on` |  | Refuse. |",
        "| `--again` |  |  | Repeat. |",
    ]


def test_every_option_that_help_prints_is_on_the_page(written):
    run = [sys.executable, "-m", "edgedistill.cli", "export", "--help"]
    shown = subprocess.run(run, capture_output=True, text=True, env=None, check=True).stdout
    general = {"--help", "--quiet", "--verbose", "--debug"}  # which the page has once
    names = {word for word in shown.split() if word.startswith("--")} - general
    section = written["cli.md"].split("## edgedistill export\n")[1].split("\n## ")[0]
    assert len(names) > 10
    assert [name for name in sorted(names) if name not in section] == []


def test_every_method_has_its_own_section(written):
    from edgedistill.objectives import OBJECTIVES

    heads = [line[3:] for line in written["method-options.md"].splitlines() if line[:3] == "## "]
    assert heads == [*sorted(OBJECTIVES), "Shared keys"]
