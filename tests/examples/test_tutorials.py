"""The tutorials' blocks parse and name what is there; their runner runs them and stops."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from edgedistill.cli import app
from edgedistill.recipes.loading import asked

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
tutorials = importlib.import_module("tutorials")
PAGES, ROOT, blocks, main = tutorials.PAGES, tutorials.ROOT, tutorials.blocks, tutorials.main

ALL = sorted(PAGES.glob("*.md"))
VERBS = {"distill", "export", "evaluate", "report"}
"""Of every page: to a proven bundle, figures and a page to read."""


def commands(page):
    """Words of every line of the page's bash blocks; lines that end in \\ go on."""
    found = []
    for block in blocks(page):
        if block.language == "bash":
            lines = block.text.replace("\\\n", " ").splitlines()
            found += [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.stem)
def test_every_block_parses(page):
    found = blocks(page)
    assert {block.language for block in found} <= {"bash", "python", "text", "yaml"}
    assert any(block.language == "bash" for block in found)
    for block in found:
        if block.language == "python":
            compile(block.text, f"{page.name}:{block.line}", "exec")
        if block.language == "bash":
            subprocess.run(["bash", "-n", "-c", block.text], check=True)


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.stem)
def test_every_command_has_its_options_and_recipe(page, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    program = typer.main.get_command(app)
    verbs = set()
    for words in commands(page):
        if words[0] == "edgedistill":
            verb = program.commands[words[1]]
            verb.make_context(words[1], words[2:])  # an unknown option raises
            verbs.add(words[1])
            if words[1] == "distill":
                recipe, out, keys = asked(words[1], [w for w in words[2:] if w != "--resume"])
                assert recipe.name
                assert out
                assert "teacher.path" in keys
        elif words[0] == "python" and words[1] != "-c":
            text = Path(words[1]).read_text(encoding="utf-8")
            for option in [word for word in words if word.startswith("--")]:
                assert f'"{option}"' in text, f"{words[1]} has no {option}"
    assert verbs >= VERBS


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.stem)
def test_every_link_leads_to_a_file(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def written(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_blocks_run_in_order_in_a_fresh_folder(tmp_path, capfd):
    page = written(
        tmp_path,
        "```bash\nmkdir made\necho one > made/a.txt\n```\nprints\n```text\nexit 1\n```\n"
        "```python\nfrom pathlib import Path\nprint(Path('made/a.txt').read_text() + 'two')\n"
        "assert Path('examples/own_teacher').is_dir()\n```\n",
    )
    for _ in range(2):  # mkdir would fail if the folder were the last one
        assert main([str(page), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "page" / "made" / "a.txt").read_text() == "one\n"
    said = capfd.readouterr().out
    assert "one\ntwo" in said.replace("one\n\n", "one\n")
    assert re.search(r"\| page \| \d+ \| \d+ \|", said)
    assert (ROOT / "examples" / "own_teacher").is_dir()  # a link to it was emptied, not it


@pytest.mark.parametrize(
    "failing",
    [
        "```bash\nfalse\ntouch later\n```",
        "```bash\nfalse | cat\ntouch later\n```",
        "```bash\necho $nothing\ntouch later\n```",
        "```python\nraise SystemExit(3)\n```",
    ],
)
def test_the_first_failure_ends_it(failing, tmp_path, capfd):
    page = written(tmp_path, f"# A\n{failing}\n```bash\ntouch later\n```\n")
    after = tmp_path / "after.md"
    after.write_text("```bash\ntouch later\n```\n", encoding="utf-8")
    assert main([str(page), str(after), "--out", str(tmp_path / "out")]) == 1
    assert not list((tmp_path / "out").rglob("later"))
    assert "page.md:2: this block failed" in capfd.readouterr().out


def test_a_block_that_does_not_end_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"page\.md:2: a block that does not end"):
        blocks(written(tmp_path, "# A\n```bash\ntrue\n"))


def test_a_longer_fence_holds_a_shorter_one(tmp_path):
    (block,) = blocks(written(tmp_path, "````text\n```bash\nfalse\n```\n````\n"))
    assert (block.language, block.text, block.line) == ("text", "```bash\nfalse\n```", 1)


def test_the_makefile_runs_the_pages():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "$(BIN)/python benchmarks/tutorials.py $(PAGES)" in text
    assert os.access(ROOT / "benchmarks" / "tutorials.py", os.R_OK)
