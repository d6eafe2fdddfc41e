"""The runtime stands alone, and each vendor is imported by its targets alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "edgedistill": ROOT / "edgedistill",
    "edgedistill_export": ROOT / "export" / "edgedistill_export",
    "edgedistill_runtime": ROOT / "runtime" / "edgedistill_runtime",
}


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool, int]]:
    """(imported package, whether inside a function, line)."""
    for node in ast.iter_child_nodes(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = [node.module or ""]
        yield from ((name.split(".")[0], inside, node.lineno) for name in names)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, inside or function)


def of_package(name: str) -> Iterator[tuple[str, str, bool]]:
    """(file:line, imported package, whether inside a function) of every import."""
    for file in sorted(PACKAGES[name].rglob("*.py")):
        for root, inside, line in imports(ast.parse(file.read_text(encoding="utf-8"))):
            yield f"{file.relative_to(ROOT)}:{line}", root, inside


def test_the_runtime_imports_neither_of_the_others():
    wrong = [
        place
        for place, root, _ in of_package("edgedistill_runtime")
        if root in ("edgedistill", "edgedistill_export", "torch", "diffusers", "transformers")
    ]
    assert wrong == []


VENDORS = ("openvino", "nncf", "tensorrt_rtx", "tensorrt", "coremltools", "executorch")


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendor_is_imported_only_by_its_targets_and_layouts(vendor):
    export = Path("export") / "edgedistill_export"
    places = [export / room for room in ("targets", "backends", "quantize", "mil", "layouts")]
    allowed = tuple(map(str, (*places, Path("runtime") / "edgedistill_runtime" / "backends")))
    wrong = [
        place
        for name in PACKAGES
        for place, root, _ in of_package(name)
        if root == vendor and not place.startswith(allowed)
    ]
    assert wrong == []
