"""Rooms stand on floors: a folder imports from lower floors alone, wherever the import stands."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = (
    ("edgedistill_runtime",),
    ("common",),
    ("assets",),
    ("diffusion", "compress"),
    ("networks",),
    ("teachers", "objectives"),
    ("proof", "tiny", "data", "rewards", "students"),
    ("training", "adoption", "draw"),
    ("recipes",),
    ("runs", "planning", "evaluation"),
    ("reporting",),
    ("edgedistill_export",),
    ("verbs",),
    ("commands",),
    ("edgedistill",),
)
"""From the ground up. `verbs` is what `import edgedistill` gives, and `commands` prints it."""

LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}

PACKAGES = {
    "edgedistill": ROOT / "edgedistill",
    "edgedistill_export": ROOT / "export" / "edgedistill_export",
    "edgedistill_runtime": ROOT / "runtime" / "edgedistill_runtime",
}


def room_of(module: str) -> str:
    """The room of a module by its dotted name."""
    package, *rest = module.split(".")
    inside = package == "edgedistill" and rest and rest[0] in LEVEL
    return rest[0] if inside else package


def imports(code: str) -> Iterator[tuple[int, str]]:
    """Line and name of every import of ours; under TYPE_CHECKING and in functions too."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def upward(module: str, code: str) -> list[str]:
    """What a module imports from its own floor's other rooms, or from above."""
    own = room_of(module)
    found = []
    for line, name in imports(code):
        other = room_of(name)
        if name.split(".")[0] in PACKAGES and other != own and LEVEL[other] >= LEVEL[own]:
            found.append(f"{module}:{line} imports {name}")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), file


def test_no_folder_imports_upward():
    found = [line for name, file in modules() for line in upward(name, file.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "from edgedistill.runs import run",
        "from edgedistill import runs",
        "import edgedistill.runs.run",
        "if TYPE_CHECKING:\n    from edgedistill.runs.run import Run",
        "def late():\n    from edgedistill.teachers.base import Teacher",
        "from edgedistill_export import bundle",
    ],
)
def test_an_import_upward_is_found(code):
    assert len(upward("edgedistill.objectives.consistency.lcm", code)) == 1


def test_every_folder_is_a_room_on_a_floor():
    folders = {path.parent.name for path in (ROOT / "edgedistill").glob("*/__init__.py")}
    assert folders <= set(LEVEL)
    names = sorted(path.name for path in (ROOT / "edgedistill").glob("*.py"))
    assert names == ["__init__.py", "__main__.py", "cli.py", "doctor.py"]


def test_files_are_short_and_folders_are_small():
    sizes = {name: len(file.read_text("utf-8").splitlines()) for name, file in modules()}
    assert [name for name, size in sizes.items() if size > 400] == []
    for package in PACKAGES.values():
        folders = {file.parent for file in package.rglob("*.py")}
        assert [str(f) for f in folders if len(list(f.glob("*.py"))) > 20] == []


def test_a_class_name_stands_for_one_thing():
    """Only a target's `Options` have their name in common."""
    places: dict[str, list[str]] = {}
    for name, file in modules():
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name != "Options":
                places.setdefault(node.name, []).append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
