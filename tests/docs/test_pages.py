"""Links of the pages lead somewhere, and their sentences can be read alone."""

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "runtime" / name for name in ("README.md", "web/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """`text` without blocks and spans of code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(text: str) -> set[str]:
    """What can stand behind # in a link to the page."""
    heads = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def dead(page: Path, text: str) -> list[str]:
    """Links of `text`, as it stands on `page`, that lead nowhere."""
    found = []
    for link in LINK.findall(prose(text)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        place = (page.parent / path).resolve() if path else page
        known = text if place == page else place.is_file() and place.read_text("utf-8", "replace")
        if not known or (anchor and anchor not in anchors(str(known))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    assert dead(page, page.read_text("utf-8")) == []


def test_a_dead_link_is_found():
    page = ROOT / "README.md"
    text = "# A b\n[a](#a-b) [b](#c) [c](docs/index.md#licence) [d](docs/no.md) [e](LICENSE#x)"
    assert dead(page, text) == ["#c", "docs/no.md", "LICENSE#x"]


def test_the_front_page_is_short():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    for command in ("make demo", "make test", "edgedistill distill", "edgedistill_runtime"):
        assert command in text


DANGLING = re.compile(
    r"(?:^|[.!?:] +|\| |^[-*] )"
    r"(Of\b.*|Those\b.*|What names\b.*|The same(?: (?:by|with|without|as|on|again)\b|\s*[.,|]).*)",
    re.M,
)
MADE = {"docs/reference/cli.md", "docs/reference/recipes.md", "docs/reference/method-options.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if name(page) not in MADE], ids=name)
def test_a_sentence_can_be_read_alone(page):
    assert DANGLING.findall(prose(page.read_text("utf-8"))) == []


def test_a_sentence_that_hangs_is_found():
    text = (
        "Read it. Of these, two.\n- Those of it.\n\nThe same again.\n| The same |\nOne of those."
    )
    assert [found.split()[0] for found in DANGLING.findall(text)] == ["Of", "Those", "The", "The"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_column_of_a_table_has_a_name(page):
    """A screen reader has no other name for a cell."""
    lines = prose(page.read_text(encoding="utf-8")).splitlines()
    heads = [a for a, b in itertools.pairwise(lines) if re.match(r"^\|[-: |]+\|$", b)]
    unnamed = [head for head in heads if any(not cell.strip() for cell in head.split("|")[1:-1])]
    # prose() takes code away, so a heading that is code alone looks empty.
    text = page.read_text(encoding="utf-8")
    assert not [head for head in unnamed if head in text]
