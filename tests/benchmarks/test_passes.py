"""benchmarks/passes.py on a tiny student: a row for each graph, blanks where none can run."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest
import torch
from tiny import save

from edgedistill.students.folder import load_student
from edgedistill.teachers.families.unet2d import UNet2D
from edgedistill.tiny import unet2d

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
passes, engines = (importlib.import_module(name) for name in ("passes", "passes_engines"))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student of pixels in two steps, which takes no prompts."""
    folder = tmp_path_factory.mktemp("pixels")
    torch.manual_seed(0)
    unet2d.pipeline().save_pretrained(folder / "tiny")
    teacher = UNet2D.load(str(folder / "tiny"))
    made = save(folder / "student", teacher, teacher.net, teacher.denoiser.prediction, steps=2)
    return load_student(made)


@pytest.fixture(scope="module")
def denoisers(student, tmp_path_factory):
    return passes.variants(student, tmp_path_factory.mktemp("passes"))


ARGS = argparse.Namespace(calls=1, seconds=0, steps=2)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_pass_has_a_row_and_attention_leaves_fewer_operators(denoisers):
    rows = passes.by_pass("ort", engines.ENGINES["ort fp32"], denoisers, ARGS)
    found = {cells(line)[1]: cells(line) for line in rows}
    assert list(found) == ["none", "attention", "times", "both"]
    operators = {name: int(row[2]) for name, row in found.items()}
    assert operators["attention"] < operators["none"]
    assert operators["both"] < operators["times"]  # whose tables a tiny network pays for
    assert float(found["none"][6]) == 1
    assert all(float(row[5]) > 0 for row in found.values())


def test_what_cannot_run_has_no_time(denoisers):
    built = engines.Opened(operators=7, size=2**20, seconds=1.5)
    engine = engines.Engine("trt", lambda given: built)
    rows = passes.by_pass("trt", engine, denoisers, ARGS)
    assert cells(rows[0]) == ["trt", "none", "7", "1.0", "1.50", "", ""]
    whole = passes.fused_of_loop("trt", engine, denoisers, denoisers["both"], ARGS)
    assert cells(whole[0]) == ["trt", "loop", "28", "4.0", "6.00", "", ""]


def test_engines_that_convert_the_network_themselves_have_no_passes(denoisers):
    assert not passes.by_pass("coreml", engines.ENGINES["coreml fp16"], denoisers, ARGS)


def test_the_loop_calls_the_denoiser_in_each_step(student, tmp_path):
    graphs, whole = passes.parts(student, tmp_path)
    calls = []
    opened = {
        name: engines.Opened(1, 1, 0, lambda name=name: calls.append(name))
        for name in ("text_encoder", "denoiser", "decoder")
    }
    passes.walked(opened, 2)()
    assert calls == ["text_encoder", "denoiser", "denoiser", "decoder"]
    assert passes.walked({**opened, "decoder": engines.Opened(1, 1, 0)}, 2) is None
    engine = engines.ENGINES["ort fp32"]
    loop, fused = passes.fused_of_loop("ort", engine, graphs, whole, ARGS)
    assert float(cells(loop)[6]) == 1
    assert int(cells(fused)[2]) > int(cells(loop)[2])
