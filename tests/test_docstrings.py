"""Every docstring can be read alone: none begins with a word that hangs on something before it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("edgedistill", "export/edgedistill_export", "runtime/edgedistill_runtime")
DANGLING = (
    *("Of ", "Those", "The same", "By ", "Its ", "Which ", "Where "),
    *("What ", "How ", "Who ", "Whose "),
)
ENTRY = re.compile(rf"^ +\w+: ({'|'.join(DANGLING)})")
"""An argument or attribute whose description begins so."""


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of all docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value.strip()


def dangling(source: str) -> list[str]:
    """Return "line: text" of docstrings and their entries that begin as in `DANGLING`."""
    found = []
    for number, text in docstrings(source):
        lines = text.splitlines()
        if text.startswith(DANGLING):
            found.append(f"{number}: {lines[0]}")
        found += [f"{number}: {line.strip()}" for line in lines[1:] if ENTRY.match(line)]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_can_be_read_alone(package):
    files = sorted((ROOT / package).rglob("*.py"))
    found = [
        f"{file.relative_to(ROOT)}:{entry}"
        for file in files
        for entry in dangling(file.read_text(encoding="utf-8"))
    ]
    assert files
    assert not found, "\n".join(found)


BODIES = {
    "module": '"""{}"""\n',
    "class": 'class A:\n    """{}"""\n',
    "function": 'def f() -> None:\n    """{}"""\n',
    "method": 'class A:\n    def f(self) -> None:\n        """{}"""\n',
    "attribute": 'class A:\n    x: int = 0\n    """{}"""\n',
    "constant": 'X = 0\n"""{}"""\n',
    "local": 'def f(self) -> None:\n    self.x = 0\n    """{}"""\n',
    "long": 'X = 0\n"""\n{}\n\nAnd more.\n"""\n',
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("begin", DANGLING)
def test_a_dangling_docstring_is_found(body, begin):
    text = f"{begin.strip()} matrices of Muon."
    assert [entry.split(": ", 1)[1] for entry in dangling(BODIES[body].format(text))] == [text]


@pytest.mark.parametrize("section", ["Args", "Attributes"])
@pytest.mark.parametrize("begin", DANGLING)
def test_a_dangling_entry_is_found(section, begin):
    entry = f"net: {begin.strip()} network."
    text = f"A title.\n\n    {section}:\n        {entry}\n        t: Time.\n"
    found = dangling(BODIES["function"].format(text))
    assert [line.split(": ", 1)[1] for line in found] == [entry]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "text",
    [
        "Momentum of Muon's matrix updates.",
        "Networks by name.",
        "Offset of the curve.",
        "Itself, where nothing is wrapped.",
        "Whether the run fits.",
    ],
)
def test_a_docstring_that_can_be_read_alone_passes(body, text):
    assert dangling(BODIES[body].format(text)) == []
