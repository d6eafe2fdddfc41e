"""Tiny real students: a Stable Diffusion folder with random weights, and a planar one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import save

from edgedistill.students.folder import load_student
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill_export import onnx_build
from edgedistill_export.trace import trace


@pytest.fixture(scope="session", autouse=True)
def _trace_once():
    """Tracing takes seconds, and the same student gives the same graph: keep each one."""
    kept = {}

    def trace_once(graph, path):
        key = (
            path.name,
            graph.step,
            graph.times,
            repr(getattr(graph.module, "table", None)),
            repr([vars(module).get("token_stride") for module in graph.module.modules()]),
            *((name, tuple(value.shape)) for name, value in graph.inputs.items()),
            *(p.sum().item() for p in graph.module.parameters()),
        )
        if key not in kept:
            trace(graph, path)
            kept[key] = path.read_bytes()
        path.write_bytes(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_build, "trace", trace_once)
        yield


@pytest.fixture(scope="session")
def student_dir(tiny_sd, tmp_path_factory) -> Path:
    """Two steps, 4x4x4 latents, 8x8 pictures."""
    root = tmp_path_factory.mktemp("tiny")
    teacher = StableDiffusion.load(str(tiny_sd))
    return save(root / "student", teacher, teacher.net, teacher.denoiser.prediction, steps=2)


@pytest.fixture(scope="session")
def student(student_dir):
    return load_student(student_dir)


@pytest.fixture(scope="session")
def planar_dir(two_modes, tmp_path_factory) -> Path:
    """A planar network with random weights, three steps."""
    folder = tmp_path_factory.mktemp("planar") / "student"
    teacher = Mixture.load(str(two_modes))
    student = teacher.spawn()
    return save(folder, teacher, student.net, student.prediction, steps=3)


@pytest.fixture(scope="session")
def bundle(student_dir, tmp_path_factory) -> Path:
    from edgedistill_export import export_student

    return export_student(student_dir, out=tmp_path_factory.mktemp("bundles") / "ort-fp32")
