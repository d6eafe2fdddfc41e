import subprocess
import sys

BLOCKED = ("torch", "diffusers", "transformers", "pydantic", "onnx", "edgedistill")

PROGRAM = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # import now raises ImportError
from edgedistill_runtime import Pipeline
import edgedistill_runtime.bench
result = Pipeline.load({bundle!r}, threads=1)("red apple", seed=3)
print(result.images.shape, result.images.sum())
"""


def test_draws_where_torch_is_blocked(picture_bundle):
    program = PROGRAM.format(blocked=BLOCKED, bundle=str(picture_bundle))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(1, 2, 2, 3)")


def test_only_asks_for_what_it_declares():
    import ast
    from pathlib import Path

    import edgedistill_runtime

    declared = {"numpy", "onnxruntime", "tokenizers", "edgedistill_runtime"}
    # A backend is imported only for a bundle that names it, the client for a name on the Hub.
    vendors = {"openvino.py": {"openvino"}, "hub.py": {"huggingface_hub"}}
    for file in Path(edgedistill_runtime.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            roots = {name.split(".")[0] for name in names}
            allowed = declared | vendors.get(file.name, set())
            assert roots <= allowed | sys.stdlib_module_names, f"{file}: {roots}"
