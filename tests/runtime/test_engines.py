"""What is said where onnxruntime is missing, damaged or old."""

import subprocess
import sys

import pytest

from edgedistill_runtime.backends.ort import check_provider, load_onnxruntime

MISSING = """
import sys
sys.modules["onnxruntime"] = None  # import now raises ModuleNotFoundError
from edgedistill_runtime.bench import main
sys.exit(main([{bundle!r}]))
"""


def test_a_missing_onnxruntime_is_one_line_that_names_the_extras(picture_bundle):
    program = MISSING.format(bundle=str(picture_bundle))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "this bundle needs onnxruntime: pip install 'edgedistill-runtime[cpu]', "
        "or [gpu], [directml] or [qnn] in its place\n"
    )


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (None, "onnxruntime has lost files, as it does when two of"),  # a folder of leftovers
        ("", "onnxruntime has lost files, as it does when two of"),
        ("raise ImportError('libcuda.so: no such file\\n\\nmore')", r"load here: libcuda\.so"),
    ],
)
def test_a_damaged_onnxruntime_is_named(init, message, tmp_path, monkeypatch):
    folder = tmp_path / "onnxruntime"
    folder.mkdir()
    if init is not None:
        (folder / "__init__.py").write_text(init)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    try:
        with pytest.raises(ValueError, match=message) as caught:
            load_onnxruntime()
    finally:
        sys.modules.pop("onnxruntime", None)
    assert "\n" not in str(caught.value)


def test_an_engine_that_does_not_tell_a_providers_share_is_taken_with_a_line(caplog):
    caplog.set_level("INFO", "edgedistill_runtime")
    check_provider("denoiser.onnx", "GPU", object())
    assert caplog.messages == [
        "denoiser.onnx: this onnxruntime does not tell which nodes GPU takes: unchecked"
    ]
